// Asks the server that this page came from, and shows what it answers: HTML of the report's templates, escaped there.
"use strict";

const byId = (name) => document.getElementById(name);
let asked = 0;

async function search(body, type, words) {
  const mine = ++asked;
  const stage = document.querySelector("input[name=stage]:checked");
  const reranked = stage && stage.value === "reranked" && typeof body === "string" && "text" in JSON.parse(body);
  const address = "/search?stage=" + (reranked ? "reranked" : "embedding");
  byId("status").textContent = "searching …";
  try {
    const answer = await fetch(address, { method: "POST", body, headers: { "Content-Type": type, Accept: "text/html" } });
    const said = answer.ok ? await answer.text() : (await answer.json()).error;
    if (mine !== asked) return; // a later search has begun
    byId("found").innerHTML = answer.ok ? said : "";
    byId("status").textContent = answer.ok ? words : said;
  } catch (error) {
    if (mine === asked) byId("status").textContent = "the server cannot be reached: " + error.message;
  }
}

function show(file) {
  const kind = file.type.startsWith("audio/") ? "audio" : "img";
  const element = document.createElement(kind);
  element.src = URL.createObjectURL(file);
  if (kind === "audio") element.controls = true;
  else element.alt = "what is searched for";
  byId("given").replaceChildren(element);
}

function searchFile(file) {
  if (!file) return;
  show(file);
  search(file, file.type || "application/octet-stream", "nearest to " + file.name);
}

function typed() {
  const text = byId("text").value.trim();
  if (!text) return;
  history.replaceState(null, "", "?" + new URLSearchParams({ q: text })); // the address can be kept, and sent on
  search(JSON.stringify({ text }), "application/json", "for “" + text + "”");
}

if (byId("query")) {
  byId("query").addEventListener("submit", (event) => { event.preventDefault(); typed(); });
  byId("query").addEventListener("change", (event) => { if (event.target.name === "stage") typed(); });
  byId("text").value = new URLSearchParams(location.search).get("q") || "";
  typed();
}
if (byId("drop")) {
  byId("file").addEventListener("change", (event) => searchFile(event.target.files[0]));
  for (const name of ["dragover", "dragleave", "drop"]) {
    byId("drop").addEventListener(name, (event) => {
      event.preventDefault();
      byId("drop").classList.toggle("over", name === "dragover");
      if (name === "drop") searchFile(event.dataTransfer.files[0]);
    });
  }
}
byId("found").addEventListener("click", (event) => {
  const like = event.target.dataset.like;
  if (like !== undefined) search(JSON.stringify({ like: Number(like) }), "application/json", "similar to image " + like);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && byId("text") && document.activeElement !== byId("text")) {
    event.preventDefault();
    byId("text").focus();
  }
});
