// Types of the page's modules, for `tsc --checkJs`.  This file is not served.

export type Metadata = Record<string, unknown>;

export interface Item {
  id: string;
  metadata: Metadata;
  /** Whether the server has a thumbnail of it. */
  image: boolean;
  /** Cosine with the query, in a search's answer. */
  score?: number;
}

export interface Point extends Item {
  /** In [-1, 1], as y. */
  x: number;
  y: number;
}

export interface Prediction {
  label: string;
  score: number;
}

/** What is searched with: an item of the index or a picture of the user's. */
export interface Query {
  name: string;
  item?: Item;
  picture?: Blob;
  /** Items that the answer should be unlike. */
  unlike: Item[];
  /** Of length 1; known after the first search. */
  vector?: number[];
  predictions?: Prediction[];
  /** The page chose it on arrival. */
  example?: boolean;
}

/** What a classifier makes of an item. */
export interface Guess extends Item {
  label: string;
}

/** A search's filter, as the server takes it. */
export type Filter = Record<string, unknown>;

/** A field of the items' metadata. */
export interface Field {
  name: string;
  numeric: boolean;
  /** Known to this page only: the server cannot filter by it. */
  local?: boolean;
  /** How many items have each value, most frequent first. */
  values: Map<string | number | boolean, number>;
}

export interface Plane {
  x: number[];
  y: number[];
  offset: [number, number];
}

/** Colours of points, and what they mean. */
export interface Paint {
  of(point: Point): [number, number, number];
  legend: { text: string; value?: unknown; colour: string; count: number }[];
}
