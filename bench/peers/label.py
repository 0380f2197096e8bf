"""What the Python peers have in common: the answer to a review, as a dict."""

import base64
import json

LABEL, TEAM = "example.com/team", "shop"


def admit(review: dict, mutate: bool) -> dict:
    request = review["request"]
    response = {"uid": request["uid"], "allowed": True}
    if mutate:
        patch = base64.b64encode(json.dumps(patch_for(request["object"])).encode()).decode()
        response |= {"patchType": "JSONPatch", "patch": patch}
    return {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}


def patch_for(obj: dict) -> list[dict]:
    labels = obj["metadata"].get("labels")
    if labels is None:
        return [{"op": "add", "path": "/metadata/labels", "value": {LABEL: TEAM}}]
    if LABEL in labels:
        return []
    return [{"op": "add", "path": "/metadata/labels/example.com~1team", "value": TEAM}]
