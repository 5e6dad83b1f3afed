"""The models, in plain PyTorch: no I/O, no device moves, no training switches.

Dimension letters, here and in every package above:

    B batch    T text position    S key position    N image    P patch    C channels
    H query head    K key/value head    D head size    V vocabulary
    L action step in a chunk    A action dimension

Reading order: config, layers, vision, connector, decoder, vlm, expert, flow, vla.
"""
