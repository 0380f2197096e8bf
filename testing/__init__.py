"""What the tests share: real AdmissionReviews, certificates, processes, API servers."""
