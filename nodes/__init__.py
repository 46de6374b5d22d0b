"""The nodes that people drag, thin over `context_diffusion`. None yet."""
