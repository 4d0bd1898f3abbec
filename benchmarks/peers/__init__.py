"""What the dispatcher is compared with: each a program that sends jobs as its users write it, and keeps no record."""
