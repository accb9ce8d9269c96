// Of a page that is served: asks whether runs have changed, and loads the page again if they have.
// What was typed and chosen, and the place on the page, stay.

(() => {
  const kept = sessionStorage.getItem("bitjax");
  const fields = () => [...document.querySelectorAll("input[id], select[id]")];
  const value = field => field.type === "checkbox" ? "checked" : "value";
  if (kept) {
    sessionStorage.removeItem("bitjax");
    const { x, y, values } = JSON.parse(kept);
    for (const field of fields()) {
      if (!(field.id in values) || field[value(field)] === values[field.id]) continue;
      field[value(field)] = values[field.id];
      for (const name of ["input", "change"]) field.dispatchEvent(new Event(name, { bubbles: true }));
    }
    window.scrollTo(x, y);
  }
  const ask = async () => {
    try {
      const answer = await fetch("version", { cache: "no-store" });
      if (answer.ok && (await answer.text()) !== version) {
        const values = Object.fromEntries(fields().map(f => [f.id, f[value(f)]]));
        const place = { x: window.scrollX, y: window.scrollY, values };
        sessionStorage.setItem("bitjax", JSON.stringify(place));
        location.reload();
        return;
      }
    } catch { /* the command has ended, or is about to be started again */ }
    setTimeout(ask, 2000);
  };
  setTimeout(ask, 2000);
})();
