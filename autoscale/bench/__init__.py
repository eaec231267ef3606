"""The benchmark: mixture methods against uniform weights, at equal probe cost."""
