// Search, filters and order of the clusters. Without this script the page shows all clusters in the initial order.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const form = document.querySelector(".tools");
  const [search, order, quality, size] = ["search", "order", "quality", "size"].map($);
  const total = { clusters: 0, images: 0 };

  const clusters = [...$("mosaic").children].map((card) => {
    const { cluster, size, quality } = card.dataset;
    total.clusters += 1;
    total.images += Number(size);
    return { card, section: $(`cluster-${cluster}`), cluster, size: Number(size), quality: Number(quality), text: null };
  });

  // The text is collected at the first search, so that it does not delay opening the page.
  const textOf = (item) => {
    if (item.text === null) {
      const tags = [...item.section.querySelectorAll("[data-tag]")].map((tag) => tag.dataset.tag.toLowerCase());
      const captions = [...item.section.querySelectorAll("img.photo")].map((photo) => photo.alt.slice("Photo: ".length).toLowerCase());
      item.text = { tags, all: [...tags, ...captions].join("\n") };
    }
    return item.text;
  };

  const matches = (item, word) => {
    if (!word.startsWith("#")) return textOf(item).all.includes(word);
    const name = word.slice(1);
    return item.cluster === name || (name !== "" && textOf(item).tags.some((tag) => tag.startsWith(name)));
  };

  const report = (visible) => {
    const images = visible.reduce((sum, item) => sum + item.size, 0);
    const share = total.images ? (100 * images) / total.images : 0;
    const noun = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
    $("shown").textContent =
      `${visible.length} of ${noun(total.clusters, "cluster")}, ` +
      `${images.toLocaleString("en")} of ${noun(total.images, "image")} (${share.toFixed(1)} %)`;
  };

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const isMatch = (item) =>
      item.quality >= Number(quality.value) &&
      item.size >= Number(size.value) &&
      words.every((word) => matches(item, word));
    const visible = clusters.filter((item) => {
      const match = isMatch(item);
      item.card.hidden = item.section.hidden = !match;
      return match;
    });
    $("quality-shown").textContent = Number(quality.value).toFixed(2);
    $("nothing").hidden = visible.length > 0;
    report(visible);
  };

  const sort = () => {
    const [first, second] = order.value === "size" ? ["size", "quality"] : ["quality", "size"];
    clusters.sort((a, b) => b[first] - a[first] || b[second] - a[second] || a.cluster - b.cluster);
    $("mosaic").append(...clusters.map((item) => item.card));
    $("details").append(...clusters.map((item) => item.section));
  };

  // A link to a cluster that the filters hide resets them.
  const follow = () => {
    const item = clusters.find((one) => `#cluster-${one.cluster}` === location.hash);
    if (!item) return;
    if (item.section.hidden) {
      form.reset();
      sort();
      filter();
    }
    item.section.scrollIntoView();
    item.section.focus({ preventScroll: true });
  };

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(() => (sort(), filter())));
  order.addEventListener("change", sort);
  window.addEventListener("hashchange", follow);
  form.hidden = false;
  // The page is in its initial order; sort and filter only if the browser restored earlier choices of the reader.
  if (!order.selectedOptions[0].defaultSelected) sort();
  if (search.value || quality.value !== "0" || size.value !== "0") filter();
  follow();
})();
