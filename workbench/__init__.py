"""What review.py does beside running policies on objects: a module a subject."""
