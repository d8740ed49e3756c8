"""How a prompt becomes a gradient: rollout, probes, credit, loss, update."""
