"""The ClientApp: hands a message to this owner's daemon and its words back. It decides nothing and opens no file of the
owner's; the daemon verifies what came, as it does what it asks for itself.
"""

import os
import ssl
from http.client import HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from common.flower import DAEMON, DAEMON_AUTHORITY, DAEMON_WORD
from common.flower_messages import FIELD, RECORD

_TIMEOUT_S: Final = 60.0
app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """What is asked and what became of answers, to the daemon; its states and answers, back."""
    data = message.content[RECORD][FIELD]
    if not isinstance(data, bytes):
        raise TypeError(f"the message holds {type(data).__name__} and not bytes")
    content = RecordDict({RECORD: ConfigRecord({FIELD: _exchange(data)})})
    return Message(content, reply_to=message)


def _exchange(data: bytes) -> bytes:
    address = urlsplit(os.environ[DAEMON])
    context = ssl.create_default_context(cafile=os.environ[DAEMON_AUTHORITY])
    assert address.hostname is not None
    connection = HTTPSConnection(address.hostname, address.port, timeout=_TIMEOUT_S, context=context)
    try:
        headers = {"Authorization": f"Bearer {os.environ[DAEMON_WORD]}"}
        connection.request("POST", address.path, body=data, headers=headers)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"the owner's daemon refuses: {body.decode(errors='replace')[:500]}")
    return body
