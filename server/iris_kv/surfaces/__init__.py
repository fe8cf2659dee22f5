"""The faces: ways in, which translate and hold no logic."""
