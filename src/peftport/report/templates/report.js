"use strict";
// Draws the figures, filters them, and lists the runs behind them. Names are only ever set as text.
(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const ALL = "all";
  const PAGE_ROWS = 100;
  const by = (id) => document.getElementById(id);

  function element(tag, text, parent) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  // Columns back to a list of objects.
  function unpack(table) {
    const names = Object.keys(table);
    const first = names.length ? table[names[0]] : { n: [] };
    return (first.n || first.at).map((_, row) => {
      const line = {};
      for (const name of names) {
        const column = table[name];
        line[name] = column.n ? column.n[row] : column.levels[column.at[row]];
      }
      return line;
    });
  }

  const tables = {};
  for (const [name, table] of Object.entries(page.tables)) tables[name] = unpack(table);
  const runs = unpack(page.runs);
  for (const run of runs) run.hosts = `${run.source} → ${run.target}`;

  const chosen = () => {
    const filters = { ...page.defaults };
    for (const select of document.querySelectorAll("#filters select")) {
      const value = select.value;
      filters[select.name] = select.name === "budget" ? Number(value) : value;
    }
    return filters;
  };

  // The rows that filters leave to a figure; the same rule as `chosen` in panels.py.
  function rowsOf(panel, filters) {
    return tables[panel.table].filter((row) => {
      for (const [column, value] of panel.fixed) if (row[column] !== value) return false;
      for (const name of page.filters) {
        if (!(name in row)) continue;
        if (panel.follows.includes(name)) {
          const open = name === "method" && filters.method === ALL;
          if (!open && row[name] !== filters[name]) return false;
        } else if (name === "pair" && panel.columns.includes("pair")) {
          if (page.several_pairs && row.pair === ALL) return false;
        }
      }
      if (panel.split === "method" && row.method === ALL) return false;
      if (panel.name === "directions" && !page.ways.includes(row.direction)) return false;
      return true;
    });
  }

  function singleRuns(panel, filters, value) {
    if (!panel.runs) return [];
    return runs.filter((run) => run.kind === "grid" && run.method === value &&
      panel.inits.includes(run.init) && run[filters.metric] !== null &&
      (filters.pair === ALL || run.hosts === filters.pair) &&
      (filters.data === ALL || run.data === filters.data)
    ).map((run) => ({ ...run, value: run[filters.metric] }));
  }

  // Charts of one figure have one axis, so that they can be compared: its ends.
  function range(panel, rows, filters, values) {
    const ends = rows.flatMap((row) => [row.low, row.high, row.mean, row.floor]);
    for (const value of values) {
      for (const run of singleRuns(panel, filters, value)) ends.push(run.value);
    }
    if (panel.shared === "x") ends.push(0);
    const known = ends.filter((end) => typeof end === "number");
    return known.length ?
      [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))] : null;
  }

  function fitScales(panel, spec, own, extent) {
    for (const scale of spec.scales) {
      if (extent && scale.name === panel.shared) scale.domain = extent;
      if (panel.split !== "question" || !["color", "shape"].includes(scale.name)) continue;
      const here = new Set(own.map((row) => row.direction));
      const keep = scale.domain.map((name) => here.has(name));
      scale.range = scale.range.filter((_, at) => keep[at]);
      scale.domain = scale.domain.filter((_, at) => keep[at]);
    }
  }

  const tip = by("tip");
  function showTip(handler, event, item, value) {
    if (!value || typeof value !== "object") { tip.hidden = true; return; }
    tip.replaceChildren();
    for (const [name, text] of Object.entries(value)) {
      if (text === "" || text === null) continue;
      element("dt", name, tip);
      element("dd", String(text), tip);
    }
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const x = Math.min(event.clientX + 14, innerWidth - box.width - 8);
    const y = event.clientY + 18 + box.height > innerHeight ?
      event.clientY - box.height - 12 : event.clientY + 18;
    tip.style.left = `${Math.max(4, x)}px`;
    tip.style.top = `${Math.max(4, y)}px`;
  }

  const views = new Map();
  async function draw(panel, filters) {
    const place = by(`figure-${panel.name}`);
    for (const view of views.get(panel.name) || []) view.finalize();
    const rows = rowsOf(panel, filters);
    const values = [...new Set(rows.map((row) => row[panel.split]))];
    if (panel.split === "budget") values.sort((a, b) => a - b);
    const extent = range(panel, rows, filters, values);
    const made = [];
    place.replaceChildren();
    if (!rows.length) element("p", "Nothing was measured for this choice.", place);
    for (const value of values) {
      const own = rows.filter((row) => row[panel.split] === value);
      const figure = element("figure", undefined, place);
      const title = panel.titles[value] ||
        (panel.split === "budget" ? `${value} steps` : String(value));
      element("figcaption", title, figure);
      const box = element("div", undefined, figure);
      box.className = "chart";
      box.setAttribute("role", "img");
      box.setAttribute("aria-label", `${panel.title}: ${title}. The numbers are in the data below.`);
      const spec = structuredClone(panel.spec);
      fitScales(panel, spec, own, extent);
      for (const set of spec.data) {
        if (set.name === "table") set.values = own;
        if (set.name === "runs") set.values = singleRuns(panel, filters, value);
      }
      const result = await window.vegaEmbed(box, spec, {
        mode: "vega", ast: true, renderer: "svg", actions: false, defaultStyle: false,
        tooltip: showTip, loader: { load: refuse, sanitize: refuse, http: refuse, file: refuse },
      });
      // the label above says what a reader of the screen needs; marks would repeat every number
      box.querySelector("svg").setAttribute("aria-hidden", "true");
      made.push(result);
    }
    views.set(panel.name, made);
    table(by(`data-${panel.name}`), panel.columns, rows);
    place.dataset.drawn = String(values.length);
  }

  const refuse = () => Promise.reject(new Error("this page loads nothing"));

  function shown(value) {
    if (value === null || value === undefined) return "";
    if (typeof value !== "number") return String(value);
    return Number.isInteger(value) ? String(value) : value.toFixed(3);
  }

  function table(place, columns, rows) {
    const made = document.createElement("table");
    const head = element("tr", undefined, element("thead", undefined, made));
    for (const name of columns) element("th", page.labels[name] || name, head).scope = "col";
    const body = element("tbody", undefined, made);
    for (const row of rows) {
      const line = element("tr", undefined, body);
      for (const name of columns) {
        const cell = element("td", shown(row[name]), line);
        if (typeof row[name] === "number") cell.className = "n";
      }
    }
    place.replaceChildren(made);
  }

  // --- the runs behind a figure ---------------------------------------------------------------
  const columns = ["kind", "method", "source", "target", "data", "seed", "init", "budget",
    ...page.metrics, "key"];
  let wanted = runs;
  let limit = PAGE_ROWS;
  let address = null;

  function listRuns(panel) {
    const filters = chosen();
    const follows = (name) => !panel || panel.follows.includes(name);
    wanted = runs.filter((run) =>
      (!panel || (panel.kinds.includes(run.kind) && panel.inits.includes(run.init))) &&
      (filters.method === ALL || run.method === filters.method) &&
      (!follows("data") || filters.data === ALL || run.data === filters.data ||
        run.kind !== "grid") &&
      (!follows("pair") || filters.pair === ALL || run.hosts === filters.pair) &&
      (!panel || !follows("budget") || run.kind !== "grid" || run.budget === filters.budget));
    by("rows-of").textContent = panel ? `Runs behind “${panel.title}”` : "All runs of this choice";
    limit = PAGE_ROWS;
    showRuns();
  }

  function showRuns() {
    by("rows-count").textContent = `${wanted.length.toLocaleString("en")} lines, one a run and ` +
      `budget; ${Math.min(limit, wanted.length)} are listed.`;
    table(by("rows-table"), columns, wanted.slice(0, limit));
    by("rows-more").hidden = limit >= wanted.length;
    if (address) URL.revokeObjectURL(address);
    const quoted = (value) => `"${shownExact(value).replaceAll('"', '""')}"`;
    const lines = [columns, ...wanted.map((run) => columns.map((name) => run[name]))];
    const text = lines.map((line) => line.map(quoted).join(",")).join("\n") + "\n";
    address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    by("rows-csv").href = address;
  }

  // A cell that a spreadsheet would run as a formula begins with a quote instead.
  function shownExact(value) {
    if (value === null || value === undefined) return "";
    const text = String(value);
    return typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  }

  // --- wiring ---------------------------------------------------------------------------------
  let turn = 0;
  async function update() {
    const mine = ++turn;
    const filters = chosen();
    document.body.dataset.state = "drawing";
    for (const panel of page.panels) {
      if (mine !== turn) return;
      await draw(panel, filters);
    }
    if (mine !== turn) return;
    listRuns(null);
    document.body.dataset.state = "drawn";
  }

  by("filters").addEventListener("change", update);
  by("filters").addEventListener("submit", (event) => event.preventDefault());
  by("all-again").addEventListener("click", () => { by("filters").reset(); update(); });
  by("rows-more").addEventListener("click", () => { limit += 10 * PAGE_ROWS; showRuns(); });
  for (const link of document.querySelectorAll("a[data-rows]")) {
    link.addEventListener("click", () => {
      listRuns(page.panels.find((panel) => panel.name === link.dataset.rows));
      by("rows").focus();
    });
  }
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
  for (const part of document.querySelectorAll("[data-script]")) part.hidden = false;
  update();
})();
