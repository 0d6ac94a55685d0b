// Drives every method that @unkey/api has for keys and what belongs to them; prints what it saw as JSON.
//
//   node story.mjs <base URL> <root key> <workspace's migration>
//
// The client checks every answer against its own models and throws when one does not fit.
import { createHash } from "node:crypto";
import { Unkey } from "@unkey/api";
import * as errors from "@unkey/api/models/errors";

const [serverURL, rootKey, migrationId] = process.argv.slice(2);
const client = new Unkey({ serverURL, rootKey });
const GROUPS = ["analytics", "apis", "identities", "keys", "permissions", "portal", "ratelimit"];
const seen = {};
const called = new Set();
const unkey = Object.fromEntries(
  GROUPS.map((group) => [
    group,
    new Proxy(client[group], {
      get: (target, name) => async (...given) => {
        called.add(`${group}.${name}`);
        const answer = await target[name](...given);
        return answer?.result ?? answer;
      },
    }),
  ]),
);

/** Returns status and code of the refusal that a call meets. */
async function refusal(call) {
  try {
    await call();
  } catch (error) {
    if (!(error instanceof errors.UnkeyError)) throw error;
    const body = JSON.parse(error.body);
    return [error.constructor.name, error.statusCode, body.error.type.split("/").at(-1)];
  }
  return "no refusal";
}

const api = (await unkey.apis.createApi({ name: "payments" })).data.apiId;
seen.api = (await unkey.apis.getApi({ apiId: api })).data.name;

await unkey.permissions.createPermission({ name: "Read", slug: "books.read", description: "all books" });
await unkey.permissions.createRole({ name: "reader", permissions: ["books.read", "books.list"] });
const role = (await unkey.permissions.getRole({ role: "reader" })).data;
await unkey.permissions.setRolePermissions({ roleId: role.id, permissions: ["books.read"] });
seen.roles = (await unkey.permissions.listRoles({ limit: 10 })).data.map((one) => one.name);
seen.permission = (await unkey.permissions.getPermission({ permission: "books.read" })).data.name;
seen.permissions = (await unkey.permissions.listPermissions({})).data.map((one) => one.slug).sort();

await unkey.identities.createIdentity({
  externalId: "ada",
  meta: { plan: "pro" },
  ratelimits: [{ name: "shared", limit: 100, duration: 60000, autoApply: true }],
});
seen.identity = (await unkey.identities.getIdentity({ identity: "ada" })).data.externalId;
seen.identities = (await unkey.identities.listIdentities({ limit: 10 })).data.length;
seen.meta = (await unkey.identities.updateIdentity({ identity: "ada", meta: { plan: "team" } })).data.meta;

const made = (
  await unkey.keys.createKey({
    apiId: api,
    prefix: "pay",
    name: "first",
    externalId: "ada",
    meta: { team: "a" },
    roles: ["reader"],
    permissions: ["books.write"],
    expires: Date.now() + 3600000,
    credits: { remaining: 10, refill: { interval: "monthly", amount: 10, refillDay: 31 } },
    ratelimits: [{ name: "requests", limit: 50, duration: 60000, autoApply: true }],
  })
).data;
const key = { keyId: made.keyId };
const verified = (
  await unkey.keys.verifyKey({
    key: made.key,
    permissions: "books.read AND (books.write OR books.none)",
    tags: ["path=/books"],
    credits: { cost: 2 },
    ratelimits: [{ name: "requests", cost: 2 }],
  })
).data;
seen.verified = [verified.valid, verified.code, verified.credits, verified.identity.externalId];
seen.limits = verified.ratelimits.map((one) => [one.name, one.remaining]).sort();
seen.shown = (await unkey.keys.getKey(key)).data.start.slice(0, 4);
seen.whoami = (await unkey.keys.whoami({ key: made.key })).data.keyId === made.keyId;
seen.listed = (await unkey.apis.listKeys({ apiId: api })).data.length;
seen.added = (await unkey.keys.addPermissions({ ...key, permissions: ["books.burn"] })).data.length;
seen.removed = (await unkey.keys.removePermissions({ ...key, permissions: ["books.burn"] })).data.length;
seen.set = (await unkey.keys.setPermissions({ ...key, permissions: ["books.write"] })).data.length;
await unkey.keys.setRoles({ ...key, roles: [] });
await unkey.keys.addRoles({ ...key, roles: ["reader"] });
seen.roleless = (await unkey.keys.removeRoles({ ...key, roles: ["reader"] })).data.length;
seen.credits = (await unkey.keys.updateCredits({ ...key, operation: "set", value: 3 })).data.remaining;
await unkey.keys.updateKey({ ...key, name: "renamed", enabled: false });
seen.renamed = (await unkey.keys.getKey(key)).data.name;
const rerolled = (await unkey.keys.rerollKey({ ...key, expiration: 60000 })).data;
seen.rerolled = rerolled.keyId !== made.keyId && rerolled.key.startsWith("pay_");
const hash = createHash("sha256").update("an old key").digest("base64");
const imported = (await unkey.keys.migrateKeys({ migrationId, apiId: api, keys: [{ hash, name: "old" }] })).data;
seen.imported = [imported.migrated.length, imported.failed.length];
seen.old = (await unkey.keys.verifyKey({ key: "an old key" })).data.name;
await unkey.keys.deleteKey(key);

const place = { namespace: "js.mails", identifier: "ada" };
const limit = { ...place, limit: 2, duration: 60000 };
seen.limited = [];
for (let turn = 0; turn < 3; turn += 1) seen.limited.push((await unkey.ratelimit.limit(limit)).data.success);
const other = { namespace: "js.calls", identifier: "ada", limit: 5, duration: 60000 };
seen.multi = (await unkey.ratelimit.multiLimit([other, { ...limit, identifier: "bob" }])).data.passed;
await unkey.ratelimit.setOverride({ ...place, limit: 100, duration: 60000 });
seen.override = (await unkey.ratelimit.getOverride(place)).data.limit;
seen.overrides = (await unkey.ratelimit.listOverrides({ namespace: "js.mails" })).data.length;
await unkey.ratelimit.deleteOverride(place);

const queries = {
  getVerifications: "SELECT COUNT(*) AS total FROM key_verifications_v1",
  getRatelimits: "SELECT COUNT(*) AS total FROM ratelimits_v1",
};
seen.analytics = {};
for (const [name, query] of Object.entries(queries)) {
  try {
    seen.analytics[name] = (await unkey.analytics[name]({ query })).data.length;
  } catch (error) {
    if (!(error instanceof errors.UnkeyError)) throw error;
    seen.analytics[name] = JSON.parse(error.body).error.type.split("/").at(-1);
  }
}
for (const name of ["getGatewayRequests", "getRuntimeLogs"]) {
  seen.analytics[name] = await refusal(() => unkey.analytics[name]({ query: "not a query" }));
}
const session = { portal: "portal", externalId: "ada", scopes: ["keys:read"] };
seen.portal = [
  await refusal(() => unkey.portal.createSession(session)),
  await refusal(() => unkey.portal.exchangeCode({ code: "pst_none" })),
  await refusal(() => unkey.portal.getVerifications({ portalSession: "pat_none" }, { startTime: 0, endTime: 1 })),
  await refusal(() => unkey.portal.listKeys({ portalSession: "pat_none" }, {})),
  await refusal(() => unkey.portal.rerollKey({ portalSession: "pat_none" }, { ...key, expiration: 0 })),
].map((one) => one[1]);

seen.refusals = [
  await refusal(() => unkey.apis.getApi({ apiId: "api_nobody0" })),
  await refusal(() => unkey.keys.createKey({ apiId: api, byteLength: 1 })),
  await refusal(() => unkey.identities.createIdentity({ externalId: "ada" })),
  await refusal(() => new Unkey({ serverURL, rootKey: "unkey_nobody" }).apis.getApi({ apiId: api })),
];
await unkey.identities.deleteIdentity({ identity: "ada" });
await unkey.permissions.deleteRole({ role: "reader" });
await unkey.permissions.deletePermission({ permission: "books.write" });
await unkey.apis.deleteApi({ apiId: api });
// Edges hear of it within a second; a busy machine may take longer.
for (let turn = 0; turn < 100 && seen.gone !== "NOT_FOUND"; turn += 1) {
  if (turn) await new Promise((resolve) => setTimeout(resolve, 100));
  seen.gone = (await unkey.keys.verifyKey({ key: rerolled.key })).data.code;
}

const methods = (group) =>
  Object.getOwnPropertyNames(Object.getPrototypeOf(client[group])).filter((name) => name !== "constructor");
seen.missed = GROUPS.flatMap((group) => methods(group).map((name) => `${group}.${name}`)).filter(
  (name) => !called.has(name),
);
seen.methods = called.size;
console.log(JSON.stringify(seen));
