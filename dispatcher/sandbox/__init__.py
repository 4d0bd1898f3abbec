"""An emulator of SageMaker async inference and the S3 around it: a server of its own process, with faults on demand."""
