// Shows only what the words in the search field name; "/" goes to the field, Escape clears it.
const field = document.querySelector("#search");
const entries = [...document.querySelectorAll("[data-words]")];
const groups = [...document.querySelectorAll("[data-group]")];
const nothing = document.querySelector("#nothing");

function search() {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const entry of entries) {
    const fits = words.every((word) => entry.dataset.words.includes(word));
    entry.classList.toggle("hidden", !fits);
    found += fits;
  }
  for (const group of groups) {
    group.classList.toggle("hidden", !group.querySelector("[data-words]:not(.hidden)"));
  }
  nothing.classList.toggle("hidden", found > 0);
  const address = new URL(location);
  words.length ? address.searchParams.set("q", field.value) : address.searchParams.delete("q");
  history.replaceState(null, "", address);
}

field.addEventListener("input", search);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== field) {
    event.preventDefault();
    field.focus();
  } else if (event.key === "Escape" && field.value) {
    field.value = "";
    search();
  }
});
field.value = new URLSearchParams(location.search).get("q") ?? "";
search();
