"""A study -> the experiment tracker that its user keeps: MLflow, Weights & Biases, TensorBoard.

The database stays the only record: a tracker is a view, written as each trial ends, and whole again whenever the
same command runs. Optuna's own callbacks for the three are deprecated since 4.9 (TensorBoard's wants TensorFlow), and
know the value of the objective alone: no interval, no verdict.
"""
