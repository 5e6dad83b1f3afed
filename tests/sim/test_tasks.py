"""The words for the tasks."""

from tailorbird.sim.metaworld import MetaWorld  # chooses OpenGL before the simulator is imported
from tailorbird.sim.tasks import INSTRUCTIONS


def test_every_task_of_the_simulator_has_one_instruction_and_no_other_has() -> None:
    MetaWorld("reach-v3").close()
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    assert set(INSTRUCTIONS) == set(ALL_V3_ENVIRONMENTS)
    assert set(INSTRUCTIONS) <= set(ENV_POLICY_MAP)
    assert len(INSTRUCTIONS) == 50


def test_instructions_are_distinct_plain_sentences() -> None:
    assert len(set(INSTRUCTIONS.values())) == len(INSTRUCTIONS)
    for sentence in INSTRUCTIONS.values():
        assert sentence == " ".join(sentence.lower().split())
        assert sentence.replace(" ", "").isalpha()
        assert 3 <= len(sentence.split()) <= 12 or sentence in {"turn the dial", "reach the target"}
