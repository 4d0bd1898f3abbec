"""Dispatches inference jobs to Amazon SageMaker AI async endpoints, durably, and brings their results back."""
