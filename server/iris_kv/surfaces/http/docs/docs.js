"use strict";

// Texts become nodes by textContent only, so that nothing in the description or an answer is taken as HTML.

const METHODS = ["get", "head", "post", "put", "patch", "delete"];
const SHOWN_CHARS = 20000;

function make(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  for (const child of children) node.append(child);
  return node;
}

// Text with `code` in it, as the description has it.
function prose(text) {
  const node = make("p");
  (text || "").split("`").forEach((part, n) => node.append(n % 2 ? make("code", {}, part) : part));
  return node;
}

function row(...cells) {
  return make("tr", {}, ...cells.map((cell) => make("td", {}, cell)));
}

function table(heads, rows) {
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}

function shownType(schema) {
  if (!schema || !Object.keys(schema).length) return "bytes";
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return make("a", { href: "#schema-" + name }, name);
  }
  const several = schema.anyOf || schema.oneOf;
  if (several) {
    const node = make("span");
    several.forEach((each, n) => node.append(n ? " or " : "", shownType(each)));
    return node;
  }
  if (schema.enum) return schema.enum.join(", ");
  if (schema.const !== undefined) return String(schema.const);
  if (schema.type === "array") {
    return make("span", {}, "array of ", shownType(schema.items));
  }
  return schema.type || "any";
}

function shownLimits(schema) {
  const found = [];
  const parts = [schema, ...(schema.anyOf || [])];
  const named = { minimum: "from", maximum: "to", exclusiveMinimum: "above", minLength: "length from", maxLength: "length to", pattern: "pattern" };
  for (const part of parts) {
    for (const [key, text] of Object.entries(named)) {
      if (part[key] !== undefined) found.push(text + " " + part[key]);
    }
  }
  if (schema.default !== undefined && schema.default !== null) found.push("default " + JSON.stringify(schema.default));
  return found.join("; ");
}

function describedSchema(name, schema) {
  const section = make("article", { id: "schema-" + name }, make("h3", {}, name), prose(schema.description));
  const required = schema.required || [];
  const rows = Object.entries(schema.properties || {}).map(([key, part]) => {
    const about = make("div", {}, prose(part.description), shownLimits(part));
    return row(make("code", {}, key), shownType(part), required.includes(key) ? "always" : "optional", about);
  });
  if (rows.length) section.append(table(["Field", "Type", "", ""], rows));
  return section;
}

function parametersTable(parameters) {
  const rows = parameters.map((each) => {
    const about = make("div", {}, prose(each.description), shownLimits(each.schema || {}));
    return row(make("code", {}, each.name), each.in, shownType(each.schema), each.required ? "required" : "optional", about);
  });
  return table(["Parameter", "In", "Type", "", ""], rows);
}

function bodies(content) {
  const node = make("div");
  for (const [type, media] of Object.entries(content || {})) {
    node.append(make("p", {}, make("code", {}, type), ": ", shownType(media.schema)));
    if (media.example !== undefined) node.append(make("pre", {}, JSON.stringify(media.example, null, 2)));
  }
  return node;
}

function responsesTable(responses) {
  const rows = Object.entries(responses).map(([status, each]) => {
    const about = make("div", {}, prose(each.description), bodies(each.content));
    const headers = Object.entries(each.headers || {});
    if (headers.length) {
      const list = headers.map(([name, header]) => row(make("code", {}, name), prose(header.description)));
      about.append(make("details", {}, make("summary", {}, "Headers"), table(["Header", ""], list)));
    }
    return row(make("code", {}, status), about);
  });
  return table(["Status", "Answer"], rows);
}

function tryForm(path, method, operation) {
  const form = make("form");
  const fields = [];
  for (const parameter of operation.parameters || []) {
    const input = make("input", { name: parameter.name, autocomplete: "off" });
    if (parameter.name === "sandbox") input.value = "default";
    fields.push([parameter, input]);
    form.append(make("label", {}, parameter.name + (parameter.required ? " (required)" : ""), input));
  }
  let type = null;
  let text = null;
  if (operation.requestBody) {
    type = make("input", { value: "application/json" });
    text = make("textarea", { rows: "6" });
    const shown = (operation.requestBody.content["application/json"] || {}).example;
    text.value = shown === undefined ? "" : JSON.stringify(shown, null, 2);
    form.append(make("label", {}, "Content-Type of the body", type), make("label", {}, "Body", text));
  }
  const output = make("pre", { hidden: "" });
  form.append(make("button", { type: "submit" }, "Send"), output);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(path, method, fields, type && type.value, text && text.value, output);
  });
  return make("details", {}, make("summary", {}, "Try it"), form);
}

async function send(path, method, fields, type, text, output) {
  const query = new URLSearchParams();
  const headers = {};
  let target = path;
  for (const [parameter, input] of fields) {
    if (input.value === "" && !parameter.required) continue;
    if (parameter.in === "path") target = target.replace("{" + parameter.name + "}", encodeURIComponent(input.value));
    else if (parameter.in === "query") query.set(parameter.name, input.value);
    else headers[parameter.name] = input.value;
  }
  const token = document.getElementById("token").value;
  if (token) headers.Authorization = "Bearer " + token;
  if (type) headers["Content-Type"] = type;
  // The page stands in the folder of the API, also behind a proxy that serves it below another path.
  const url = new URL(target.replace(/^\/api\//, ""), document.baseURI);
  url.search = query;
  output.hidden = false;
  output.textContent = "…";
  try {
    const answer = await fetch(url, { method: method.toUpperCase(), headers, body: type ? text : undefined, cache: "no-store" });
    const lines = [answer.status + " " + answer.statusText];
    answer.headers.forEach((value, name) => lines.push(name + ": " + value));
    const body = await answer.text();
    const more = body.length > SHOWN_CHARS ? "\n[" + (body.length - SHOWN_CHARS) + " more characters]" : "";
    output.textContent = lines.join("\n") + "\n\n" + body.slice(0, SHOWN_CHARS) + more;
  } catch (error) {
    output.textContent = String(error);
  }
}

function describedOperation(path, method, operation) {
  const heading = make("h3", {}, make("span", { class: "method" }, method.toUpperCase()), " ", make("code", {}, path));
  const node = make("article", { id: operation.operationId }, heading, make("p", {}, make("strong", {}, operation.summary || "")), prose(operation.description));
  if ((operation.parameters || []).length) node.append(parametersTable(operation.parameters));
  if (operation.requestBody) node.append(make("h4", {}, "Body"), bodies(operation.requestBody.content));
  node.append(make("h4", {}, "Answers"), responsesTable(operation.responses), tryForm(path, method, operation));
  return node;
}

function draw(description) {
  document.getElementById("title").textContent = description.info.title + " API " + description.info.version;
  document.getElementById("description").replaceWith(prose(description.info.description));
  const groups = new Map();
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const method of METHODS) {
      if (!methods[method]) continue;
      const tag = (methods[method].tags || ["other"])[0];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push([path, method, methods[method]]);
    }
  }
  const list = make("ul");
  for (const [tag, operations] of groups) {
    document.getElementById("operations").append(make("h2", {}, tag), ...operations.map((each) => describedOperation(...each)));
    for (const [, method, operation] of operations) {
      list.append(make("li", {}, make("a", { href: "#" + operation.operationId }, operation.summary || method)));
    }
  }
  document.getElementById("contents").append(list);
  const schemas = document.getElementById("schemas");
  for (const [name, schema] of Object.entries(description.components.schemas)) schemas.append(describedSchema(name, schema));
  const problems = Object.entries(description["x-problems"] || {}).map(([code, each]) => {
    const line = row(make("code", {}, code), String(each.status), prose(each.description));
    line.id = "problem-" + code;
    return line;
  });
  document.getElementById("problems").append(table(["Code", "Status", ""], problems));
  schemas.hidden = document.getElementById("problems").hidden = false;
  document.getElementById("status").remove();
  // What a link led to did not exist before now.
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target) { const hash = location.hash; location.hash = ""; location.hash = hash; }
}

fetch("openapi.json")
  .then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error("status " + answer.status))))
  .then(draw)
  .catch((error) => { document.getElementById("status").textContent = "The description cannot be read: " + error.message; });
