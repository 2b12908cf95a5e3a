"""Products of experts and tempered targets: the Feynman-Kac correctors and the gauge that calms their weights."""
