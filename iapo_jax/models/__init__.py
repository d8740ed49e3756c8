"""The policy: one decoder, used purely through `transformer.extend`."""
