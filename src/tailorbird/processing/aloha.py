"""Between the joints of an Aloha robot and those that pi0's robots, and SmolVLA's base, learned with.

Two arms of seven joints: some turn the other way, and the grippers are measured along a line in one and as an
angle in the other. The constants are lerobot's; tests/parity/test_lerobot_policy.py compares with it.
"""

import torch
from torch import Tensor

from tailorbird.errors import DataError

NUM_JOINTS = 14
TURNED, GRIPPERS = [1, 2, 8, 9], [6, 13]
LINE_M = (0.01844, 0.05800)  # finger closed, finger open
ARM_M, HORN_M = 0.036, 0.022  # of the linkage that moves a finger
ANGLE_RAD = (0.4, 1.5)  # of the motor, as measured on a robot
JOINT_RAD = (-0.6213, 1.4910)  # of the joint, closed and open


def _to_share(value: Tensor, ends: tuple[float, float]) -> Tensor:
    return (value - ends[0]) / (ends[1] - ends[0])


def _from_share(share: Tensor, ends: tuple[float, float]) -> Tensor:
    return share * (ends[1] - ends[0]) + ends[0]


def _turned(joints: Tensor) -> Tensor:
    """A copy of (..., A) with the joints turned over that turn the other way."""
    if joints.shape[-1] < NUM_JOINTS:
        raise DataError(f"an Aloha has {NUM_JOINTS} joints, not {joints.shape[-1]}: use its own policy")
    joints = joints.clone()
    joints[..., TURNED] *= -1
    return joints


def decode_state(state: Tensor) -> Tensor:
    """What the model reads, (..., 14), from the robot's joints."""
    joints = _turned(state)
    line = _from_share(joints[..., GRIPPERS], LINE_M)
    sine = (HORN_M**2 + line**2 - ARM_M**2) / (2 * HORN_M * line)
    joints[..., GRIPPERS] = _to_share(torch.arcsin(sine.clamp(-1, 1)), ANGLE_RAD)
    return joints


def encode_actions(actions: Tensor) -> Tensor:
    """What the robot is told, (..., 14), from the model's actions."""
    joints = _turned(actions)
    joints[..., GRIPPERS] = _to_share(_from_share(joints[..., GRIPPERS], ANGLE_RAD), JOINT_RAD)
    return joints


def decode_actions(actions: Tensor) -> Tensor:
    """Inverse of `encode_actions`: what the model should have said, (..., 14)."""
    joints = _turned(actions)
    joints[..., GRIPPERS] = _to_share(_from_share(joints[..., GRIPPERS], JOINT_RAD), ANGLE_RAD)
    return joints
