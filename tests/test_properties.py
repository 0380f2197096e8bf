"""What must hold of whook.py for any input: hypothesis makes it up, jsonpatch is the judge."""

import json
import random
import unittest

import jsonpatch
from hypothesis import given, settings
from hypothesis import strategies as st

import whook
from test_whook import PatchChecks, exact
from tests.server import REVIEWS

# No key "-": the jsonpatch library takes it for the end of a list.
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, 1.0, 0.5])
    | st.sampled_from(["", "a", "b", "é", "~", "/"]),
    lambda children: (
        st.lists(children, max_size=5)
        | st.dictionaries(
            st.sampled_from(["", "a", "b", "c/d", "~e", "~1", "0"]), children, max_size=5
        )
    ),
    max_leaves=25,
)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "c/d", "~e"]), JSON, max_size=4)


class ParseReviewProperties(unittest.TestCase):
    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_damaged_reviews_are_parsed_or_refused(self, data):
        body = bytearray(random.Random(1).choice(list(REVIEWS.values())))
        for _ in range(data.draw(st.integers(1, 8))):
            place = data.draw(st.integers(0, len(body) - 1))
            body[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        try:
            whook.evaluate(whook.parse_review(bytes(body)), ())
        except whook.HTTPError as refusal:
            self.assertEqual(refusal.status, 400)


class JsonPatchProperties(PatchChecks, unittest.TestCase):
    def check(self, before, after):
        patch = super().check(before, after)
        self.assertEqual(exact(jsonpatch.apply_patch(before, patch)), exact(after))
        return patch

    @settings(max_examples=400, deadline=None)
    @given(OBJECTS, OBJECTS)
    def test_any_two_objects(self, before, after):
        self.check(before, after)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(JSON, max_size=6), st.lists(JSON, max_size=6))
    def test_any_two_lists(self, before, after):
        self.check({"x": before}, {"x": after})

    @settings(max_examples=200, deadline=None)
    @given(st.lists(JSON, max_size=6), JSON, st.integers(0, 6))
    def test_one_insertion_or_removal_is_one_operation(self, items, item, place):
        more = [*items[:place], item, *items[place:]]
        self.assertEqual(len(self.check({"x": items}, {"x": more})), 1)
        self.assertEqual(len(self.check({"x": more}, {"x": items})), 1)

    @settings(max_examples=100, deadline=None)
    @given(OBJECTS)
    def test_equal_documents_give_nothing(self, document):
        self.assertEqual(whook.diff(document, json.loads(json.dumps(document))), [])


class FramingProperties(unittest.TestCase):
    @settings(max_examples=300, deadline=None)
    @given(
        st.binary(max_size=200)
        | st.lists(
            st.sampled_from(
                [
                    b"POST",
                    b" ",
                    b"/mutate",
                    b"HTTP/1.1",
                    b"\r\n",
                    b"\n",
                    b"Host",
                    b":",
                    b"x",
                    b"Content-Length",
                    b"5",
                    b"\t",
                    b"\x00",
                    b"\xff",
                ]
            ),
            max_size=30,
        ).map(b"".join)
    )
    def test_any_bytes_are_a_head_or_refused(self, data):
        try:
            head = whook.read_head(data)
            whook.body_length(head, 100)
        except whook.HTTPError as refusal:
            self.assertIn(refusal.status, (400, 411, 413, 431))
