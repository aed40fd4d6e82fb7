"""Tests common clients against a running server: openai, LangChain, LlamaIndex.

    python bench/serve_clients.py http://127.0.0.1:8080 IMAGE [KEY]

Needs openai; langchain-openai and llama-index-embeddings-openai where they are to be tried.  Fails on any difference to /embed.
"""
import base64, importlib.util, json, sys, urllib.request

import openai

url, image = sys.argv[1], open(sys.argv[2], "rb").read()
key = sys.argv[3] if len(sys.argv) > 3 else "none"
uri = "data:image/png;base64," + base64.b64encode(image).decode()
headers = {"Content-Type": "image/png", "Authorization": f"Bearer {key}"}
expected = json.load(urllib.request.urlopen(urllib.request.Request(url + "/embed", image, headers)))["embeddings"][0]


def same(vector):
    assert len(vector) == len(expected) and max(abs(a - b) for a, b in zip(vector, expected)) < 1e-5


client = openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=3)
names = [model.id for model in client.models.list()]
assert len(names) == 1 and client.models.retrieve(names[0]).id == names[0]
for given in (uri, [uri, uri], [{"type": "image_url", "image_url": {"url": uri}}]):
    for more in ({}, {"encoding_format": "float"}):  # without it the client asks for base64
        answer = client.embeddings.create(model=names[0], input=given, **more)
        [same(item.embedding) for item in answer.data]
for kind, param, ask in [
    (openai.BadRequestError, "dimensions", lambda: client.embeddings.create(model="m", input=uri, dimensions=3)),
    (openai.BadRequestError, "input", lambda: client.embeddings.create(model="m", input="a cat")),
    (openai.BadRequestError, "input", lambda: client.embeddings.create(model="m", input=[[1, 2, 3]])),
    (openai.UnprocessableEntityError, "input", lambda: client.embeddings.create(model="m", input="data:image/png;base64,aGVsbG8=")),
    (openai.NotFoundError, "model", lambda: client.models.retrieve("gpt-4")),
]:
    try:
        ask()
        raise SystemExit("no error")
    except openai.APIStatusError as error:
        assert type(error) is kind and error.param == param and error.type == "invalid_request_error" and error.code, repr(error)
print(f"openai {openai.__version__}: models, three shapes of input, two encodings, five errors")

if importlib.util.find_spec("langchain_openai"):
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(base_url=url + "/v1", api_key=key, model=names[0], check_embedding_ctx_length=False, chunk_size=64)
    [same(vector) for vector in embeddings.embed_documents([uri] * 70)]
    same(embeddings.embed_query(uri))
    print("LangChain: 70 images in chunks of 64")

if importlib.util.find_spec("llama_index"):
    from llama_index.embeddings.openai import OpenAIEmbedding

    embeddings = OpenAIEmbedding(api_base=url + "/v1", api_key=key, model_name=names[0], embed_batch_size=64)
    [same(vector) for vector in embeddings.get_text_embedding_batch([uri] * 70)]
    same(embeddings.get_query_embedding(uri))
    print("LlamaIndex: 70 images in batches of 64")
