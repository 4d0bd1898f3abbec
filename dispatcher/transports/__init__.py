"""Ways to hand a payload over: inline with the request, or staged in S3."""
