"""What a run may be asked for: fields, their rules, methods and presets."""
