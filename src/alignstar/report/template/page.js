"use strict";
// The browser of prompts. Texts of models and people enter the page as text nodes only.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const make = (name, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(name), properties);
    node.append(...children);
    return node;
  };
  const told = (value, digits = 3) =>
    value === null || value === undefined ? "\u2013" : Number(value.toPrecision(digits + 1)).toLocaleString("en");
  const disc = (method) => make("span", { className: `number f${method.family}`, textContent: method.number });
  const hidden = new Set();
  let shown = data.prompts.slice();
  let place = 0;

  const first = (prompt) => {
    const scores = prompt.replies.map((reply) => reply.rewards[0]).filter((score) => typeof score === "number");
    return scores.length ? Math.max(...scores) - Math.min(...scores) : -1;
  };
  const orders = {
    number: (a, b) => a.index - b.index,
    difference: (a, b) => first(b) - first(a) || a.index - b.index,
    failures: (a, b) => failures(b) - failures(a) || a.index - b.index,
  };
  const failures = (prompt) => prompt.replies.filter((reply) => reply.error !== undefined).length;

  function choose() {
    const words = at("search").value.trim().toLowerCase();
    const says = (text) => text.toLowerCase().includes(words);
    shown = data.prompts.filter(
      (p) => !words || `${p.index}` === words || says(p.prompt) || p.replies.some((r) => says(r.text))
    );
    shown.sort(orders[at("order").value]);
    place = 0;
    show();
  }

  function show() {
    at("trace").hidden = true;
    at("place").textContent = shown.length ? `${place + 1} of ${shown.length}` : "none found";
    at("before").disabled = place === 0;
    at("after").disabled = place >= shown.length - 1;
    const prompt = shown[place];
    at("prompt").textContent = prompt ? prompt.prompt : "";
    at("which").textContent = prompt ? `Prompt ${prompt.index}` : "No prompt holds these words.";
    at("prompt").hidden = !prompt;
    const seed = at("seed").value;
    const replies = prompt ? prompt.replies.filter((r) => !hidden.has(r.method) && `${r.seed}` === seed) : [];
    at("replies").replaceChildren(...replies.map(card));
  }

  function card(reply) {
    const method = data.methods[reply.method];
    const head = make("strong", {}, disc(method), method.label);
    if (reply.error !== undefined) {
      return make("article", { className: "reply" }, head, make("p", { className: "failed", textContent: `Failed: ${reply.error}` }));
    }
    const facts = data.rewards.map((name, i) => `${name} ${told(reply.rewards[i])}`);
    if (reply.kl !== null) facts.push(`KL ${told(reply.kl)} nats`);
    facts.push(`${told(reply.lm_tokens, 6)} LM and ${told(reply.rm_tokens, 6)} RM tokens`);
    if (reply.judged) facts.push(`${data.judge.name}: ${told(reply.judged[0])} to ${told(reply.judged[1])} of ${data.judge.rival}`);
    if (reply.finish === "length") facts.push("cut at the length limit");
    const said = make("p", { className: "said", textContent: reply.text.trim() || "(empty)" });
    const node = make("article", { className: "reply" }, head, said, make("span", { className: "soft", textContent: facts.join(" \u00b7 ") }));
    if (reply.trace) {
      const button = make("button", { type: "button", textContent: "Token trace" });
      button.addEventListener("click", () => showTrace(reply, method));
      node.append(button);
    }
    return node;
  }

  function showTrace(reply, method) {
    at("trace").hidden = false;
    at("traced").replaceChildren("Token trace: ", disc(method), method.label);
    const values = reply.trace.map((step) => (step.options[step.chosen] || [])[2]).filter((v) => typeof v === "number");
    const low = Math.min(...values), high = Math.max(...values);
    const buttons = reply.trace.map((step) => {
      const taken = step.options[step.chosen];
      const button = make("button", { type: "button", textContent: step.text || "\u2205" });
      if (taken && typeof taken[2] === "number" && high > low) {
        button.style.setProperty("--share", (taken[2] - low) / (high - low));
      }
      if (taken && step.options.some((other) => other[1] > taken[1])) button.className = "turned";
      button.addEventListener("click", () => {
        for (const other of buttons) other.setAttribute("aria-pressed", other === button);
        showStep(step);
      });
      return button;
    });
    at("tokens").replaceChildren(...buttons);
    if (buttons.length) buttons[0].click();
    at("trace").scrollIntoView({ block: "nearest" });
  }

  function showStep(step) {
    const rows = step.options.map((option, i) => {
      const cells = option.slice(1).map((value) => make("td", { textContent: told(value) }));
      const name = make("th", { scope: "row", textContent: option[0] });
      const row = make("tr", { className: i === step.chosen ? "chosen" : "" }, name, ...cells);
      row.append(make("td", { textContent: i === step.chosen ? "chosen" : "" }));
      return row;
    });
    at("options").replaceChildren(...rows);
    const ties = step.near_ties ? ` ${step.near_ties} near tie(s).` : "";
    at("step").textContent = rows.length
      ? `Step ${step.index}: ${rows.length} considered.${ties}`
      : `Step ${step.index}: nothing else was considered.${ties}`;
  }

  for (const name of ["search", "order", "seed"]) at(name).addEventListener(name === "search" ? "input" : "change", choose);
  at("before").addEventListener("click", () => { place -= 1; show(); });
  at("after").addEventListener("click", () => { place += 1; show(); });
  for (const method of data.methods) {
    const button = make("button", { type: "button" }, disc(method), method.label);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      const now = hidden.delete(method.index) || !hidden.add(method.index);
      button.setAttribute("aria-pressed", now);
      show();
    });
    at("methods").append(button);
  }
  for (const seed of data.seeds) at("seed").append(make("option", { value: seed, textContent: `seed ${seed}` }));
  at("seed").hidden = data.seeds.length < 2;
  addEventListener("beforeprint", () => {
    for (const folded of document.querySelectorAll("details.print")) folded.open = true;
  });
  choose();
})();
