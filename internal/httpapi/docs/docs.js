"use strict";

// el makes an element; children may be strings. Text is never taken for HTML.
function el(tag, attrs, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs || {})) e.setAttribute(k, v);
  e.append(...children.filter((c) => c !== null && c !== undefined && c !== ""));
  return e;
}

// prose shows `code` in running text.
function prose(text) {
  const p = el("p");
  (text || "").split("`").forEach((part, i) => p.append(i % 2 ? el("code", {}, part) : part));
  return p;
}

let doc;

function resolve(schema) {
  if (!schema || !schema.$ref) return [schema || {}, ""];
  const name = schema.$ref.split("/").pop();
  return [doc.components.schemas[name] || {}, name];
}

function typeLink(schema) {
  const [s, name] = resolve(schema);
  if (name) return el("a", { href: "#schema-" + name }, name);
  if (s.oneOf) return el("span", {}, ...s.oneOf.flatMap((o, i) => (i ? [" or ", typeLink(o)] : [typeLink(o)])));
  const types = [].concat(s.type || "any");
  if (types.includes("array")) return el("span", {}, "list of ", typeLink(s.items));
  if (s.additionalProperties && typeof s.additionalProperties === "object") return el("span", {}, "map to ", typeLink(s.additionalProperties));
  return el("span", {}, types.join(" or ") + (s.format ? ` (${s.format})` : ""));
}

function rules(s) {
  const out = [];
  const values = s.enum || (s.items && s.items.enum);
  if (values) out.push("one of " + values.filter((v) => v !== null).join(", "));
  if (s.default !== undefined) out.push("default " + JSON.stringify(s.default));
  if (s.minimum !== undefined || s.maximum !== undefined) out.push(`${s.minimum ?? "…"} to ${s.maximum ?? "…"}`);
  if (s.minLength || s.maxLength) out.push(`${s.minLength ?? 0} to ${s.maxLength ?? "…"} characters`);
  if (s.pattern) out.push("matches " + s.pattern);
  return out.join("; ");
}

function fields(rows, head) {
  return el("div", { class: "wide" }, el("table", {},
    el("thead", {}, el("tr", {}, ...head.map((h) => el("th", { scope: "col" }, h)))),
    el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells.map((c) => el("td", {}, c)))))));
}

function nameCell(name, required) {
  return el("span", {}, el("code", {}, name), required ? el("span", { class: "must" }, " required") : "");
}

function schemaTable(s) {
  const props = Object.entries(s.properties || {}).filter(([n]) => n !== "$schema");
  if (!props.length) return el("p", {}, typeLink(s));
  return fields(props.map(([n, p]) => [nameCell(n, (s.required || []).includes(n)), typeLink(p), el("span", {}, p.description || "", p.description && rules(p) ? " " : "", rules(p))]), ["Field", "Type", "Meaning"]);
}

// example makes a value that fits a schema, from its own examples where there are any.
function example(schema, requiredOnly, depth = 0) {
  const [s] = resolve(schema);
  if (s.examples && s.examples.length) return s.examples[0];
  if (s.default !== undefined) return s.default;
  if (s.enum) return s.enum[0];
  if (s.oneOf) return example(s.oneOf[0], requiredOnly, depth);
  const type = [].concat(s.type || "object")[0];
  if (type === "array") return depth > 3 ? [] : [example(s.items, requiredOnly, depth + 1)];
  if (type === "integer" || type === "number") return s.minimum || 0;
  if (type === "boolean") return false;
  if (type === "string") return s.format === "uuid" ? "0195f2c4-7a1b-4c3d-9e8f-0123456789ab" : s.format === "date-time" ? "2026-01-24T12:00:00Z" : "…";
  const out = {};
  for (const [n, p] of Object.entries(s.properties || {})) {
    if (n !== "$schema" && (!requiredOnly || (s.required || []).includes(n))) out[n] = example(p, requiredOnly, depth + 1);
  }
  return out;
}

// needsToken tells whether an operation is refused without a token.
function needsToken(op) {
  return Boolean(doc.security) && !(op.security && op.security.some((s) => !Object.keys(s).length));
}

function curl(verb, path, op) {
  const url = location.origin + path.replace("{id}", "ID");
  let cmd = "curl " + (verb === "GET" ? "" : `-X ${verb} `) + `'${url}'`;
  if (needsToken(op)) cmd += " \\\n  -H \"Authorization: Bearer $TOKEN\"";
  const body = op.requestBody && op.requestBody.content["application/json"];
  if (body) cmd += " \\\n  -H 'Content-Type: application/json' \\\n  -d '" + JSON.stringify(example(body.schema, true)) + "'";
  return cmd;
}

// tryIt sends a request with what is typed, and shows the answer as it comes: some have no end. The token goes into the Authorization
// header only, and is kept nowhere but in its field.
function tryIt(verb, path, op) {
  const fields = (op.parameters || []).filter((p) => p.in !== "header").map((p) => ({ p, input: el("input", { type: "text", "aria-label": p.name }) }));
  const json = op.requestBody && op.requestBody.content["application/json"];
  const body = json && el("textarea", { rows: "8", spellcheck: "false", "aria-label": "Body" });
  if (body) body.value = JSON.stringify(example(json.schema, true), null, 2);
  const send = el("button", { type: "button" }, "Send"), stop = el("button", { type: "button", disabled: "" }, "Stop");
  const status = el("p", { role: "status" }), out = el("pre", { tabindex: "0", hidden: "" });
  let running;
  send.addEventListener("click", async () => {
    let url = path;
    const query = new URLSearchParams();
    for (const { p, input } of fields) {
      if (p.in === "path") url = url.replace(`{${p.name}}`, encodeURIComponent(input.value));
      else if (input.value !== "") query.append(p.name, input.value);
    }
    const token = document.getElementById("token").value.trim(), headers = {};
    if (needsToken(op) && token) headers.Authorization = "Bearer " + token;
    if (body) headers["Content-Type"] = "application/json";
    running = new AbortController();
    send.disabled = true;
    stop.disabled = false;
    status.textContent = "Waiting for the answer…";
    out.textContent = "";
    out.hidden = true;
    try {
      const answer = await fetch(url + (query.size ? "?" + query : ""), { method: verb, headers, body: body ? body.value : undefined, signal: running.signal, credentials: "omit" });
      status.textContent = `${answer.status} ${answer.statusText}`;
      out.hidden = false;
      await show(answer, out);
    } catch (e) {
      status.textContent += running.signal.aborted ? " Stopped." : " It failed: " + e.message;
    }
    send.disabled = false;
    stop.disabled = true;
  });
  stop.addEventListener("click", () => running.abort());
  return el("details", {}, el("summary", {}, "Try it"),
    ...fields.map(({ p, input }) => el("label", {}, p.name + (p.required ? "" : ", optional"), input)),
    body ? el("label", {}, "Body", body) : "", send, stop, status, out);
}

// show writes an answer into out, in a form for people if it is JSON and whole.
async function show(answer, out) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) out.append(part.value);
  if ((answer.headers.get("Content-Type") || "").includes("ndjson")) return;
  try {
    out.textContent = JSON.stringify(JSON.parse(out.textContent), null, 2);
  } catch {
    // it is no JSON, and stays as it is
  }
}

function operation(verb, path, op) {
  const a = el("article", { id: op.operationId },
    el("h3", {}, op.summary || op.operationId),
    el("div", { class: "route" }, el("span", { class: "verb " + verb }, verb), " " + path));
  if (op.description) a.append(prose(op.description));
  if (op["x-required-role"]) a.append(el("p", {}, "Needs a token with the role ", el("strong", {}, op["x-required-role"]), " or more."));
  if (op.parameters && op.parameters.length) {
    a.append(el("h4", {}, "Parameters"), fields(op.parameters.map((p) => [
      nameCell(p.name, p.required), el("span", {}, p.in + ", ", typeLink(p.schema)), el("span", {}, p.description || (p.schema || {}).description || "", " ", rules(p.schema || {})),
    ]), ["Name", "Where, type", "Meaning"]));
  }
  if (op.requestBody) {
    const schema = Object.values(op.requestBody.content)[0].schema;
    a.append(el("h4", {}, "Body: ", typeLink(schema)), schemaTable(resolve(schema)[0]));
  }
  const answers = Object.entries(op.responses || {}).map(([status, r]) => {
    const [type, media] = Object.entries(r.content || {})[0] || ["", null];
    return [el("code", {}, status === "default" ? "error" : status), media ? typeLink(media.schema) : el("span", {}, r.description || ""), el("span", {}, type)];
  });
  a.append(el("h4", {}, "Answers"), fields(answers, ["Status", "Body", "Content type"]));
  if (op.responses["101"] === undefined) a.append(el("h4", {}, "With curl"), el("pre", { tabindex: "0" }, curl(verb, path, op)));
  const ok = Object.entries(op.responses || {}).find(([s]) => s.startsWith("2"));
  const media = ok && ok[1].content && Object.values(ok[1].content)[0];
  if (media) a.append(el("details", {}, el("summary", {}, "An answer looks like this"), el("pre", { tabindex: "0" }, JSON.stringify(example(media.schema, false), null, 2))));
  if (op.responses["101"] === undefined) a.append(tryIt(verb, path, op));
  return a;
}

function render() {
  document.getElementById("access").hidden = !doc.security;
  const main = document.getElementById("main"), index = document.getElementById("index");
  main.replaceChildren(prose(doc.info.description));
  for (const tag of doc.tags) {
    main.append(el("h2", {}, tag.name));
    if (tag.description) main.append(prose(tag.description));
    const list = el("ul");
    for (const [path, verbs] of Object.entries(doc.paths)) {
      for (const [verb, op] of Object.entries(verbs)) {
        if (!(op.tags || []).includes(tag.name)) continue;
        main.append(operation(verb.toUpperCase(), path, op));
        list.append(el("li", {}, el("a", { href: "#" + op.operationId }, op.summary || op.operationId)));
      }
    }
    index.append(el("h2", {}, tag.name), list);
  }
  main.append(el("h2", {}, "Schemas"));
  for (const [name, s] of Object.entries(doc.components.schemas)) {
    main.append(el("article", { id: "schema-" + name }, el("h3", {}, name), schemaTable(s)));
  }
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

fetch("/openapi.json")
  .then((r) => { if (!r.ok) throw new Error("the server answered " + r.status); return r.json(); })
  .then((d) => { doc = d; render(); })
  .catch((e) => { document.getElementById("status").textContent = "The description could not be loaded: " + e.message + ". Reload the page to try again."; });
