"""FastAPI under uvicorn with uvloop and httptools: uvicorn fastapi_peer:app"""

from fastapi import FastAPI
from label import admit

app = FastAPI()


@app.post("/mutate")
async def mutate(review: dict):
    return admit(review, True)


@app.post("/validate")
async def validate(review: dict):
    return admit(review, False)
