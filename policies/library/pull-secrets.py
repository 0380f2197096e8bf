"""Pods pull their images with the company's pull secret.

Writes spec.imagePullSecrets.
Rule: CREATE of pods.
Secrets that are there stay. Better not on pod templates: a pod that names a secret itself gets
none of its service account's. A Secret of this name must be in each namespace.
"""

from objects import add, pod_of

NAME = "company-registry"


def mutate(obj, request):
    pod = pod_of(obj, request)
    if pod is not None:
        add(pod, "spec.imagePullSecrets", {"name": NAME})
