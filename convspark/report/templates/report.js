"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const HEIGHT = 230, LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 24;
  const charts = JSON.parse(document.getElementById("charts").textContent);

  const make = (parent, name, attributes = {}, text = "") => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text) element.textContent = text;
    parent.appendChild(element);
    return element;
  };

  // The round number between two of about so many ticks within [low, high].
  const stepWithin = (low, high, about) => {
    const rough = (high - low) / about || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    return [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  };

  // Round numbers within [low, high], about so many.
  const ticks = (low, high, about) => {
    const step = stepWithin(low, high, about);
    const found = [], first = Math.ceil(low / step - 1e-9);
    // Counted from 0: values that differ in their last bit alone are more steps from 0 than whole numbers go.
    for (let n = 0; n <= about + 1 && (first + n) * step <= high + 1e-9 * step; n++) found.push((first + n) * step);
    return found;
  };

  const magnitude = (value) => Math.floor(Math.log10(Math.abs(value)) + 1e-9);

  // Of a tick its value, with as many digits as tell it from the next one.
  const namer = (values, step, percent) => {
    const digits = Math.min(100, Math.max(0, -magnitude(percent ? 100 * step : step)));
    const size = Math.max(...values.map(Math.abs));
    return (value) => {
      if (percent) return `${(100 * value).toFixed(digits)} %`;
      if (value === 0) return "0";
      if (size >= 1e-3 && size < 1e5) return value.toFixed(digits);
      return value.toExponential(Math.min(4, Math.max(0, magnitude(value) - magnitude(step))));
    };
  };

  const shown = (value, percent) => {
    if (percent) return `${(100 * value).toFixed(1)} %`;
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  };

  class Chart {
    constructor(figure, chart) {
      this.chart = chart;
      this.plot = figure.querySelector(".plot");
      this.legend = figure.querySelector(".legend");
      this.epochs = [...new Set(chart.lines.flatMap((line) => line.points.map(([epoch]) => epoch)))].sort((a, b) => a - b);
      this.cursor = null;
      this.all();
      this.listen();
      this.draw(); // at once: what prints or stores the page need not wait until its size is observed
      new ResizeObserver(() => this.draw()).observe(this.plot);
    }

    all() {
      const first = this.epochs[0], last = this.epochs[this.epochs.length - 1];
      this.from = first === last ? first - 0.5 : first;
      this.to = first === last ? last + 0.5 : last;
    }

    get zoomed() {
      return this.from > this.epochs[0] || this.to < this.epochs[this.epochs.length - 1];
    }

    // Where a curve is between points, within what is seen, so that its ends count for the height.
    range() {
      let low = Infinity, high = -Infinity;
      for (const { points } of this.chart.lines)
        for (const [epoch, value] of points)
          if (epoch >= this.from && epoch <= this.to) { low = Math.min(low, value); high = Math.max(high, value); }
      if (!Number.isFinite(low)) return [0, 1];
      const room = 0.06 * (high - low) || 0.1 * Math.abs(high) || 0.5;
      return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
    }

    draw() {
      const width = Math.max(220, this.plot.clientWidth);
      this.plot.replaceChildren();
      const svg = make(this.plot, "svg", { viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" });
      const [low, high] = this.range();
      this.x = (epoch) => LEFT + ((epoch - this.from) / (this.to - this.from)) * (width - LEFT - RIGHT);
      this.epochAt = (x) => this.from + ((x - LEFT) / (width - LEFT - RIGHT)) * (this.to - this.from);
      const y = (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
      const heights = ticks(low, high, 4);
      const named = namer(heights, stepWithin(low, high, 4), this.chart.percent);
      for (const value of heights) {
        make(svg, "line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) });
        make(svg, "text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, named(value));
      }
      for (const epoch of ticks(this.from, this.to, width / 90))
        if (Number.isInteger(epoch) || this.to - this.from < 1)
          make(svg, "text", { x: this.x(epoch), y: HEIGHT - 6, "text-anchor": "middle" }, String(Number(epoch.toPrecision(6))));
      const clip = make(make(svg, "defs"), "clipPath", { id: `clip${charts.indexOf(this.chart)}` });
      make(clip, "rect", { x: LEFT, y: 0, width: width - LEFT - RIGHT, height: HEIGHT - BOTTOM + 2 });
      const curves = make(svg, "g", { "clip-path": `url(#clip${charts.indexOf(this.chart)})` });
      this.seen = make(svg, "line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
      this.chosen = make(svg, "rect", { class: "chosen", y: TOP, height: HEIGHT - TOP - BOTTOM, width: 0 });
      this.dots = [];
      for (const line of this.chart.lines) {
        const colour = `c${line.colour % 8}`;
        const points = line.points.map(([epoch, value]) => `${this.x(epoch).toFixed(1)},${y(value).toFixed(1)}`);
        make(curves, "polyline", { class: `curve ${colour}${line.style && ` ${line.style}`}`, points: points.join(" ") });
        if (line.points.length <= 2)
          for (const [epoch, value] of line.points) make(curves, "circle", { class: `dot ${colour}`, cx: this.x(epoch), cy: y(value), r: 4 });
        this.dots.push(make(svg, "circle", { class: `dot ${colour}`, r: 4.5, visibility: "hidden" }));
      }
      this.y = y;
      this.point();
    }

    // The legend tells each curve's value at the cursor, or its last one.
    point() {
      const at = this.cursor;
      this.seen.setAttribute("visibility", at === null ? "hidden" : "visible");
      if (at !== null) { this.seen.setAttribute("x1", this.x(at)); this.seen.setAttribute("x2", this.x(at)); }
      const items = this.chart.lines.map((line, number) => {
        const known = at === null ? line.points : line.points.filter(([epoch]) => epoch <= at);
        const point = known[known.length - 1];
        const dot = this.dots[number], visible = at !== null && point && point[0] >= this.from && point[0] <= this.to;
        dot.setAttribute("visibility", visible ? "visible" : "hidden");
        if (visible) { dot.setAttribute("cx", this.x(point[0])); dot.setAttribute("cy", this.y(point[1])); }
        const item = document.createElement("li"), key = document.createElement("span"), value = document.createElement("b");
        key.className = "key";
        const style = `curve c${line.colour % 8}${line.style && ` ${line.style}`}`;
        make(make(key, "svg", { width: 30, height: 4, "aria-hidden": "true" }), "line", { class: style, x1: 1, x2: 29, y1: 2, y2: 2 });
        value.textContent = point ? shown(point[1], this.chart.percent) : "–";
        item.append(key, `${line.label} `, value);
        return item;
      });
      const where = document.createElement("li");
      where.className = "faint";
      where.textContent = at === null ? (this.zoomed ? "enlarged" : "last") : `epoch ${at}`;
      this.legend.replaceChildren(where, ...items);
    }

    nearest(epoch) {
      const inside = this.epochs.filter((each) => each >= this.from && each <= this.to);
      return inside.reduce((best, each) => (best === null || Math.abs(each - epoch) < Math.abs(best - epoch) ? each : best), null);
    }

    see(from, to) {
      if (this.epochs.filter((epoch) => epoch >= from && epoch <= to).length >= 2) { this.from = from; this.to = to; }
      this.draw();
    }

    listen() {
      const place = (event) => event.clientX - this.plot.getBoundingClientRect().left;
      let begun = null;
      this.plot.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        begun = place(event);
        if (event.pointerType === "mouse") this.plot.setPointerCapture(event.pointerId);
      });
      this.plot.addEventListener("pointermove", (event) => {
        this.cursor = this.nearest(this.epochAt(place(event)));
        this.point();
        if (begun !== null) {
          this.chosen.setAttribute("x", Math.min(begun, place(event)));
          this.chosen.setAttribute("width", Math.abs(place(event) - begun));
        }
      });
      const end = (event) => {
        const x = place(event), start = begun;
        begun = null;
        this.chosen.setAttribute("width", 0);
        if (start !== null && Math.abs(x - start) > 12) {
          const [a, b] = [this.epochAt(start), this.epochAt(x)].sort((one, two) => one - two);
          this.see(Math.max(a, this.from), Math.min(b, this.to));
        }
      };
      this.plot.addEventListener("pointerup", end);
      this.plot.addEventListener("pointercancel", () => { begun = null; this.chosen.setAttribute("width", 0); });
      this.plot.addEventListener("pointerleave", () => { if (begun === null) { this.cursor = null; this.point(); } });
      this.plot.addEventListener("dblclick", () => { this.all(); this.draw(); });
      this.plot.addEventListener("blur", () => { this.cursor = null; this.point(); });
      this.plot.addEventListener("keydown", (event) => this.press(event));
    }

    press(event) {
      const inside = this.epochs.filter((epoch) => epoch >= this.from && epoch <= this.to);
      const now = this.cursor === null ? inside.length - 1 : inside.indexOf(this.cursor);
      const middle = this.cursor ?? (this.from + this.to) / 2, reach = (this.to - this.from) / 2;
      const moves = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: inside.length - 1 };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key in moves) this.cursor = inside[Math.min(inside.length - 1, Math.max(0, moves[event.key]))] ?? null;
      else if (event.key === "+" || event.key === "=") this.see(Math.max(this.from, middle - reach / 2), Math.min(this.to, middle + reach / 2));
      else if (event.key === "-" || event.key === "−") {
        const first = this.epochs[0], last = this.epochs[this.epochs.length - 1];
        if (first !== last) this.see(Math.max(first, middle - 2 * reach), Math.min(last, middle + 2 * reach));
      } else if (event.key === "0" || event.key === "Escape") { this.all(); this.draw(); }
      else return;
      event.preventDefault();
      this.point();
    }
  }

  const drawn = [...document.querySelectorAll("[data-chart]")].map((figure) => new Chart(figure, charts[Number(figure.dataset.chart)]));

  for (const slider of document.querySelectorAll(".slider")) {
    const input = slider.querySelector("input"), pictures = [...slider.querySelectorAll("img")];
    input.addEventListener("input", () => {
      pictures.forEach((picture, number) => { picture.hidden = number !== Number(input.value); });
      const { epoch } = pictures[Number(input.value)].dataset;
      slider.querySelector("output").textContent = epoch;
      input.setAttribute("aria-valuetext", `epoch ${epoch}`);
    });
  }

  // A page that is written again and again is read again, unless somebody is looking closely.
  const seconds = Number(document.body.dataset.reload);
  if (seconds > 0)
    setInterval(() => {
      const moved = [...document.querySelectorAll(".slider input")].some((input) => input.value !== input.max);
      if (!moved && !drawn.some((chart) => chart.zoomed || chart.cursor !== null)) location.reload();
    }, 1000 * seconds);
})();
