"""params.yaml: its schema, the validation messages, and the values that a run uses."""
