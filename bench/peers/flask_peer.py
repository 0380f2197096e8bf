"""Flask under gunicorn: gunicorn --worker-class gthread flask_peer:app"""

from flask import Flask, request
from label import admit

app = Flask(__name__)


@app.post("/mutate")
def mutate():
    return admit(request.get_json(), True)


@app.post("/validate")
def validate():
    return admit(request.get_json(), False)
