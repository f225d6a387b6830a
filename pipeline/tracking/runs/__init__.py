"""What MLflow holds of trainings and sweeps."""
