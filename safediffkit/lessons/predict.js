// A question that reveals its answer after a commitment, and the board of all of them. Needs no kernel.
let made = 0; // radio buttons of one question share a name that no other question has

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const number = (value) => String(+value.toPrecision(6));

// Without a kernel nobody else counts, so each question tells the page, and the boards of the page listen.
const EVENT = "safediffkit-guess";
const tell = (model, right) =>
  document.dispatchEvent(new CustomEvent(EVENT, { detail: { question: model.get("question"), right } }));
const known = (window.safediffkitGuesses ??= new Map()); // question -> true, false, or null while it is open

function board({ model, el }) {
  const text = element("p", { class: "safediffkit-score", role: "status" });
  let counting = false; // the kernel's count holds until a question of this page is heard
  const show = () => {
    const verdicts = [...known.values()];
    const open = verdicts.filter((right) => right === null).length;
    const right = verdicts.filter((right) => right === true).length;
    const counted = verdicts.length > open ? `${right} of ${verdicts.length - open} right` : "no guess yet";
    text.textContent = `Your guesses: ${counting ? counted + (open ? `, ${open} still open` : "") : model.get("score")}`;
  };
  const heard = () => {
    counting = true;
    show();
  };
  const told = () => {
    counting = false;
    show();
  };
  document.addEventListener(EVENT, heard);
  model.on("change:score", told);
  show();
  el.append(text);
  return () => {
    document.removeEventListener(EVENT, heard);
    model.off("change:score", told);
  };
}

function question({ model, el }) {
  const options = model.get("options");
  const choice = model.get("kind") === "choice";
  const name = `safediffkit-guess-${++made}`;
  const root = element("fieldset", { class: "safediffkit-predict", role: "group" });
  root.append(element("legend", {}, model.get("question")));

  const inputs = (choice ? options : [""]).map((option) =>
    element("input", { type: choice ? "radio" : "number", name, value: option, "data-lm-suppress-shortcuts": "true" }),
  );
  const marks = inputs.map(() => element("span", { class: "safediffkit-mark" }));
  inputs.forEach((input, i) => {
    if (choice) {
      root.append(element("label", {}, input, element("span", {}, options[i]), marks[i]));
    } else {
      input.setAttribute("step", "any");
      root.append(element("label", {}, element("span", {}, "your guess"), input, model.get("unit"), marks[i]));
    }
    input.addEventListener("input", () => {
      if (model.get("committed")) return;
      const given = choice ? input.value : input.valueAsNumber;
      model.set("given", choice || Number.isFinite(given) ? given : null);
      model.save_changes();
      status.textContent = "";
    });
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.ctrlKey) commit();
    });
  });

  // A disabled button would drop the keyboard's focus, so it only says that it does nothing more.
  const button = element("button", { type: "button", "data-lm-suppress-shortcuts": "true" }, "commit");
  const status = element("div", { class: "safediffkit-verdict", role: "status" });
  const commit = () => {
    if (model.get("committed")) return;
    if (model.get("given") === null) {
      status.textContent = choice ? "Choose an answer first." : "Type a number first.";
      return;
    }
    model.set("committed", true);
    model.save_changes();
    show();
  };
  button.addEventListener("click", commit);

  const show = () => {
    const given = model.get("given");
    const answer = model.get("answer");
    const committed = model.get("committed");
    inputs.forEach((input, i) => {
      if (choice) input.checked = given === options[i];
      else if (given !== null && input.valueAsNumber !== given) input.value = given;
      input.disabled = committed;
    });
    if (committed) button.setAttribute("aria-disabled", "true");
    button.textContent = committed ? "committed" : "commit";
    const right = !committed ? null : choice ? given === answer : Math.abs(given - answer) <= model.get("tolerance");
    root.dataset.committed = committed;
    root.dataset.right = right ?? "";
    known.set(model.get("question"), right);
    tell(model, right);
    if (!committed) return;
    if (choice) {
      options.forEach((option, i) => {
        const mine = option === given ? "your guess" : "";
        marks[i].textContent = option === answer ? `✓ ${mine || "right"}` : mine && `✗ ${mine}`;
      });
    }
    const unit = model.get("unit") && ` ${model.get("unit")}`;
    const remark = choice ? model.get("remarks")[options.indexOf(given)] : "";
    const words = choice
      ? right ? "Yes." : `Not “${given}”${remark ? ":" : "."}`
      : right ? `Yes: it is ${number(answer)}${unit}.` : `Not ${number(given)}${unit}: it is ${number(answer)}${unit}.`;
    const verdict = element("p", {}, element("strong", {}, `${right ? "✓" : "✗"} ${words}`), remark ? ` ${remark}` : "");
    status.replaceChildren(verdict);
    if (model.get("reveal")) status.append(element("p", {}, model.get("reveal")));
  };

  root.append(button, status);
  model.on("change:given", show);
  model.on("change:committed", show);
  show();
  el.append(root);
  return () => {
    model.off("change:given", show);
    model.off("change:committed", show);
  };
}

export default { render: (context) => (context.model.get("kind") === "board" ? board : question)(context) };
