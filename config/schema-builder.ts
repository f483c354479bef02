// Builds the schema: TypeBox's types, made without loading TypeBox.
//
// TypeBox gives the schema its static types (`Static`), and tests run its validator as a second
// opinion. Its run-time half is several hundred modules, and loading them costs more than a quarter
// of a second, half of the time in which the gateway is to serve its first request. What the
// configuration needs of it is small: plain JSON Schema objects. So these functions have the names
// and types of TypeBox's and return the same objects.
// Control thread. Spec: JSON Schema draft 2020-12.

import type {
  TArray,
  TBoolean,
  TEnum,
  TInteger,
  TLiteral,
  TLiteralValue,
  TNumber,
  TObject,
  TOptional,
  TProperties,
  TRecord,
  TSchema,
  TString,
  TUnion,
} from 'typebox';

/** A schema as this program reads it: the keywords of JSON Schema that the configuration uses. */
export interface SchemaNode {
  type?: 'object' | 'array' | 'string' | 'integer' | 'number' | 'boolean';
  description?: string;
  default?: unknown;
  properties?: Record<string, SchemaNode>;
  required?: string[];
  /** Of a mapping with keys of the user's own: what each of them holds, what they may be called, how many there are. */
  additionalProperties?: boolean | SchemaNode;
  propertyNames?: { pattern: string };
  maxProperties?: number;
  items?: SchemaNode;
  minItems?: number;
  maxItems?: number;
  anyOf?: SchemaNode[];
  enum?: readonly string[];
  const?: unknown;
  pattern?: string;
  minimum?: number;
  maximum?: number;
}

type Options = Record<string, unknown>;

/** Properties that may be absent; kept aside because a schema itself must stay plain JSON Schema. */
const optional = new WeakSet<object>();

/** A schema as `SchemaNode`. */
export function nodeOf(schema: TSchema): SchemaNode {
  return schema as SchemaNode;
}

/** A text. */
export function text(options: Options): TString {
  return make({ type: 'string', ...options });
}

/** A whole number. */
export function wholeNumber(options: Options): TInteger {
  return make({ type: 'integer', ...options });
}

/** Any number. */
export function number(options: Options): TNumber {
  return make({ type: 'number', ...options });
}

/** true or false. */
export function flag(options: Options): TBoolean {
  return make({ type: 'boolean', ...options });
}

/** One value. */
export function literal<const T extends TLiteralValue>(value: T): TLiteral<T> {
  return make({ const: value });
}

/** One of some words. */
export function words<const T extends string>(values: readonly T[], options: Options): TEnum<T[]> {
  return make({ enum: values, ...options });
}

/** A value that fits one of several schemas. */
export function union<const T extends TSchema[]>(branches: readonly [...T], options: Options): TUnion<T> {
  return make({ anyOf: branches, ...options });
}

/** A list. */
export function list<T extends TSchema>(items: T, options: Options): TArray<T> {
  return make({ type: 'array', items, ...options });
}

/** A mapping from names of the user's own, which match `pattern`, to values; `maxProperties` of them. */
export function dictionary<T extends TSchema>(
  values: T,
  pattern: string,
  maxProperties: number,
  options: Options,
): TRecord<'^.*$', T> {
  return make({ type: 'object', additionalProperties: values, propertyNames: { pattern }, maxProperties, ...options });
}

/** A key of a mapping that may be absent. */
export function maybe<T extends TSchema>(schema: T): TOptional<T> {
  optional.add(schema);
  return schema as unknown as TOptional<T>;
}

/** A mapping with these keys and no others. */
export function mapping<const T extends TProperties>(properties: T, options: Options = {}): TObject<T> {
  const required = Object.keys(properties).filter((key) => !optional.has(properties[key]!));
  return make({
    type: 'object',
    properties,
    ...(required.length === 0 ? {} : { required }),
    additionalProperties: false,
    ...options,
  });
}

/** The static type is a promise that the run-time object keeps; TypeBox marks its own with symbols of its types. */
function make<T>(schema: object): T {
  return schema as T;
}
