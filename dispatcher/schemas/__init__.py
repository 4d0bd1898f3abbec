"""What editors, validators and people can read about the input: JSON Schemas and a sample, all written from the code."""
