// @ts-check
// A request of each route that works as it stands.

/**
 * @typedef {{ title: string, path: string, json?: unknown, picture?: boolean, field?: string, writes?: boolean }} Example
 * `picture`: a picture is the body, or with `field` a part of a form.
 */

/** @param {string} id of an item that exists, if there is one @returns {Record<string, Example[]>} */
export function examples(id) {
  const item = "/items/" + encodeURIComponent(id);
  return {
    "POST /embed": [{ title: "A picture as the body", path: "/embed", picture: true }, { title: "Several pictures in a form", path: "/embed?normalize=false", picture: true, field: "images" }],
    "POST /classify": [{ title: "The three most probable classes", path: "/classify?top_k=3", picture: true }, { title: "By the classifier trained from labels", path: "/classify?probe=labels&top_k=3", picture: true }],
    "POST /search": [
      { title: "Items similar to a picture, with its classes", path: "/search?k=5&top_k=3", picture: true },
      { title: "Items similar to an item, with a filter", path: "/search", json: { id, k: 5, filter: {} } },
    ],
    "POST /items": [{ title: "Several pictures, named by their file names", path: "/items", picture: true, field: "images", writes: true }],
    "GET /items": [{ title: "The first five items", path: "/items?limit=5" }],
    "PUT /items/{id}": [{ title: "Store a picture under an id, with metadata", path: "/items/example?metadata=" + encodeURIComponent('{"label":"example"}'), picture: true, writes: true }],
    "GET /items/{id}": [{ title: "One item", path: item }],
    "DELETE /items/{id}": [{ title: "Remove the item of the example above", path: "/items/example", writes: true }],
    "GET /items/{id}/image": [{ title: "The thumbnail of an item", path: item + "/image" }],
    "GET /labels": [{ title: "All labels", path: "/labels" }, { title: "As CSV", path: "/labels?format=csv" }],
    "POST /labels": [{ title: "Label an item", path: "/labels", json: { labels: [{ id, label: "example" }] }, writes: true }],
    "GET /probe": [{ title: "The classifier of the present labels", path: "/probe" }],
    "POST /probe": [{ title: "Train, name the three least certain items, classify one", path: "/probe", json: { uncertain: 3, classify: [id] } }],
    "GET /duplicates": [{ title: "Near-duplicates", path: "/duplicates?threshold=0.95&limit=5" }],
    "GET /map": [{ title: "Places of about twenty items", path: "/map?points=20" }],
    "POST /v1/embeddings": [{ title: "As OpenAI's clients send it; input is a picture as a data: URI", path: "/v1/embeddings", json: { input: "PICTURE" } }],
    "GET /v1/models": [{ title: "The model", path: "/v1/models" }],
    "GET /v1/models/{model}": [{ title: "One model", path: "/v1/models/MODEL" }],
    "GET /info": [{ title: "Model, device, limits", path: "/info" }],
    "GET /health": [{ title: "Liveness", path: "/health" }],
    "GET /ready": [{ title: "Readiness", path: "/ready" }],
    "GET /metrics": [{ title: "For Prometheus", path: "/metrics" }],
    "POST /admin/reload": [{ title: "Load the bundle's folder again", path: "/admin/reload", writes: true }],
  };
}
