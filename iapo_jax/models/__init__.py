"""The decoder, whose one primitive is `transformer.extend`."""
