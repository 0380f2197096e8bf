"""All tests but the server's own, and what they share: real reviews, certificates, API servers."""
