// Search, filters and order of the clusters. Without it the page shows everything, best first.
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
    return { card, section: $(`cluster-${cluster}`), cluster, size: Number(size), quality: Number(quality), words: null };
  });

  // Read when the first word is typed: opening the page should not wait for it.
  const wordsOf = (item) => {
    if (item.words === null) {
      const tags = [...item.section.querySelectorAll("[data-tag]")].map((tag) => tag.dataset.tag.toLowerCase());
      const captions = [...item.section.querySelectorAll("img.photo")].map((photo) => photo.alt.slice(7).toLowerCase());
      item.words = { tags, text: [...tags, ...captions].join("\n") };
    }
    return item.words;
  };

  const matches = (item, word) => {
    if (!word.startsWith("#")) return wordsOf(item).text.includes(word);
    const name = word.slice(1);
    return item.cluster === name || (name !== "" && wordsOf(item).tags.some((tag) => tag.startsWith(name)));
  };

  const say = (shown) => {
    const images = shown.reduce((sum, item) => sum + item.size, 0);
    const share = total.images ? (100 * images) / total.images : 0;
    const noun = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
    $("shown").textContent =
      `${shown.length} of ${noun(total.clusters, "cluster")}, ` +
      `${images.toLocaleString("en")} of ${noun(total.images, "image")} (${share.toFixed(1)} %)`;
  };

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (item) =>
      item.quality >= Number(quality.value) &&
      item.size >= Number(size.value) &&
      words.every((word) => matches(item, word));
    const shown = clusters.filter((item) => {
      const visible = fits(item);
      item.card.hidden = item.section.hidden = !visible;
      return visible;
    });
    $("quality-shown").textContent = Number(quality.value).toFixed(2);
    $("nothing").hidden = shown.length > 0;
    say(shown);
  };

  const sort = () => {
    const [first, second] = order.value === "size" ? ["size", "quality"] : ["quality", "size"];
    clusters.sort((a, b) => b[first] - a[first] || b[second] - a[second] || a.cluster - b.cluster);
    $("mosaic").append(...clusters.map((item) => item.card));
    $("details").append(...clusters.map((item) => item.section));
  };

  // A link to a cluster shows it, whatever is filtered.
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
  // The page comes in order; only a browser that remembers what was chosen needs more.
  if (!order.selectedOptions[0].defaultSelected) sort();
  if (search.value || quality.value !== "0" || size.value !== "0") filter();
  follow();
})();
