"""Models, losses, the engine and the one training loop."""
