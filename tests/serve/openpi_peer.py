"""openpi's own client, in an environment of its own: python openpi_peer.py URL KEY SEEN.npz ANSWERS.npz"""

import json
import sys

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def main() -> None:
    url, key, seen, answers = sys.argv[1:]
    policy = WebsocketClientPolicy(host=url, api_key=key or None)
    found = np.load(seen)
    timings, actions = [], []
    for image, state in zip(found["images"], found["states"], strict=True):
        answer = policy.infer(
            {"observation/image": image, "observation/state": state, "prompt": "reach the cube"}
        )
        actions.append(answer["actions"])
        timings.append(answer["server_timing"])
    np.savez(answers, actions=np.stack(actions))
    print(json.dumps({"metadata": sorted(policy.get_server_metadata()), "timings": timings}))


if __name__ == "__main__":
    main()
