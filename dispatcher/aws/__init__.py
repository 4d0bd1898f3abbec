"""What knows the AWS SDK: clients, errors, locations, deadlines, bodies of uploads."""
