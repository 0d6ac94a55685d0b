// Two small servers as their authors would write them: a route limited by @unkey/ratelimit, and a Hono app
// whose routes @unkey/hono guards. Prints its port; ends with its standard input.
//
//   node servers.mjs <base URL> <root key>
import { createServer } from "node:http";
import { Hono } from "hono";
import { unkey } from "@unkey/hono";
import { Overrides, Ratelimit } from "@unkey/ratelimit";

const [baseUrl, rootKey] = process.argv.slice(2);

// @unkey/hono knows one address only: what is meant for it goes to ours, and nothing else is changed.
const direct = globalThis.fetch;
globalThis.fetch = async (input, init) => {
  const request = new Request(input, init);
  const address = new URL(request.url);
  if (address.host !== "api.unkey.com") return direct(request);
  const body = await request.arrayBuffer();
  const { method, headers } = request;
  return direct(new URL(address.pathname, baseUrl), { method, headers, body });
};

const limiter = new Ratelimit({ rootKey, baseUrl, namespace: "js.server", limit: 3, duration: "60s" });
const overrides = new Overrides({ rootKey, baseUrl });
const app = new Hono();

app.get("/limited", async (context) => {
  const { success, remaining } = await limiter.limit(context.req.query("who"));
  return context.json({ remaining }, success ? 200 : 429);
});
app.post("/overrides/:who", async (context) => {
  await overrides.setOverride({
    namespace: "js.server",
    identifier: context.req.param("who"),
    limit: 1000,
    duration: 60000,
  });
  return context.json({});
});
app.use(
  "/guarded/*",
  unkey({
    rootKey,
    tags: ["server=hono"],
    permissions: "books.read",
    handleInvalidKey: (context, result) => context.json({ code: result.data.code }, 401),
    onError: (context, error) => context.json({ error: error.message }, 502),
  }),
);
app.get("/guarded/me", (context) => context.json({ keyId: context.get("unkey").data.keyId }));

const server = createServer(async (incoming, outgoing) => {
  const url = `http://${incoming.headers.host}${incoming.url}`;
  const answer = await app.fetch(new Request(url, { method: incoming.method, headers: incoming.headers }));
  outgoing.writeHead(answer.status, Object.fromEntries(answer.headers));
  outgoing.end(Buffer.from(await answer.arrayBuffer()));
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
process.stdin.resume().on("end", () => process.exit(0));
