"""How much to speculate: cost curves, acceptance calibration, the planner. Pure numpy; knows nothing of vLLM."""
