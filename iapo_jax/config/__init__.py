"""The configuration of a run: fields, their rules, methods and presets."""
