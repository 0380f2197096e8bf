"""Objects say who created them, in an annotation that nobody can forge or take away.

Reads userInfo.username and the old object; writes metadata.annotations.
Rule: CREATE, UPDATE of services, configmaps, secrets; apps/deployments, apps/statefulsets;
batch/jobs.
Whatever the user puts there is replaced: on UPDATE by what the object had before. What a controller
makes names the controller's user. validate refuses what another webhook made of it afterwards.
"""

from objects import edit, read

ANNOTATION = "example.com/created-by"


def mutate(obj, request):
    if request.sub_resource:
        return
    annotations = read(obj, "metadata.annotations", dict)
    author = rightful_author(request)
    if author is not None:
        edit(obj, "metadata.annotations", dict)[ANNOTATION] = author
    elif ANNOTATION in annotations:
        del annotations[ANNOTATION]


def validate(obj, request):
    if request.sub_resource or obj is None:
        return
    author, found = rightful_author(request), author_in(obj, request)
    if found != author:
        request.deny(
            f'metadata.annotations: "{ANNOTATION}" is {found!r} and must be {author!r}; '
            "leave it to the webhook"
        )


def rightful_author(request):
    if request.operation == "CREATE":
        return read(request.user_info, "username", str)
    return author_in(request.old_object or {}, request)


def author_in(obj, request):
    return read(obj, "metadata.annotations", dict).get(ANNOTATION)
