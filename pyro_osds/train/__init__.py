"""How the flow is trained: objectives, rounds, the diffusion teacher and its distillation, recipes."""
