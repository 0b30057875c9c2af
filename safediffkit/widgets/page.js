// Runs the widgets of a page without a kernel: each gets a small model that answers as anywidget's would.
(async (data) => {
  const { modules, models } = JSON.parse(data.textContent);

  // The address ends in the states that were changed: #name={...}&other={...}
  const entries = () => location.hash.slice(1).split("&").filter(Boolean).map((entry) => entry.split("="));
  const stated = (id) => {
    const found = entries().find(([name]) => name === id);
    if (!found) return undefined;
    try {
      return JSON.parse(decodeURIComponent(found[1]));
    } catch {
      return null; // the widget says what it thinks of this
    }
  };
  const note = (id, state) => {
    const kept = entries().filter(([name, value]) => name !== id && value !== undefined);
    kept.push([id, encodeURIComponent(JSON.stringify(state))]);
    history.replaceState(history.state, "", `#${kept.map((entry) => entry.join("=")).join("&")}`);
  };

  function bytes(text) {
    const raw = atob(text);
    const array = new Uint8Array(raw.length);
    for (let k = 0; k < raw.length; k++) array[k] = raw.charCodeAt(k);
    return new DataView(array.buffer);
  }

  function model(id, { state, buffers }) {
    const heard = {};
    for (const [name, text] of Object.entries(buffers)) state[name] = bytes(text);
    const first = stated(id);
    if (first !== undefined && "state" in state) state.state = first;
    const tell = (event, ...what) => [...(heard[event] ?? [])].forEach((act) => act(...what));
    let waiting = 0;
    let fresh = false;
    const write = () => {
      clearTimeout(waiting);
      waiting = 0;
      if (fresh) note(id, state.state);
      fresh = false;
    };
    const self = {
      get: (name) => state[name],
      set(name, value) {
        if (state[name] === value) return;
        state[name] = value;
        fresh ||= name === "state";
        tell(`change:${name}`, self, value);
        tell("change", self);
      },
      on: (event, act) => void (heard[event] ??= []).push(act),
      off(event, act) {
        if (heard[event]) heard[event] = act ? heard[event].filter((one) => one !== act) : [];
      },
      save_changes: () => void (waiting ||= setTimeout(write, 200)), // browsers refuse an address changed too often
      send() {},
      link() {
        fresh = "state" in state;
        write();
        return location.href;
      },
    };
    addEventListener("hashchange", () => {
      const given = stated(id);
      if (given === undefined || !("state" in state)) return;
      state.state = given;
      tell("change:state", self, given);
    });
    return self;
  }

  const loaded = {};
  const load = (key) =>
    (loaded[key] ??= import(URL.createObjectURL(new Blob([modules[key].esm], { type: "text/javascript" }))));

  for (const [key, { css }] of Object.entries(modules)) {
    if (!css || document.querySelector(`style[data-safediffkit="${key}"]`)) continue;
    const style = document.createElement("style");
    style.dataset.safediffkit = key;
    style.textContent = css;
    document.head.append(style);
  }
  for (const [id, entry] of Object.entries(models)) {
    for (const el of document.querySelectorAll(`[data-safediffkit-model="${id}"]`)) {
      try {
        const widget = (await load(entry.module)).default;
        const made = model(id, entry);
        await widget.initialize?.({ model: made });
        el.replaceChildren();
        await widget.render({ model: made, el });
      } catch (error) {
        el.textContent = `This picture could not be started in your browser: ${error.message}`;
        console.error(error);
      }
    }
  }
})(document.currentScript.previousElementSibling);
