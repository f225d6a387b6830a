"""An Optuna study that several drivers share. The package does not import Ray."""
