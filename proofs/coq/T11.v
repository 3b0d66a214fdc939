(* T11. Exact gains of moving a refitted mask: deleting an input (OBS), inserting one, and a 1-swap with refit. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From awp Require Import matrix_forms T10.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* Among the d with a given entry d_u = a, the least d A d^T is a^2 / P_uu with P = A^-1. *)
Section PinnedEntry.
Variables (R : realFieldType) (k : nat) (A P : 'M[R]_k).
Hypotheses (psdA : psd A) (inverse : A *m P = 1%:M).
Variable u : 'I_k.
Hypothesis pivot_gt0 : 0 < P u u.

Lemma inverse_sym : P^T = P.
Proof.
have [symA _] := psdA; have AunitL : P^T *m A = 1%:M by rewrite -[A]symA -trmx_mul inverse trmx1.
by rewrite -[P^T]mulmx1 -inverse mulmxA AunitL mul1mx.
Qed.

Lemma form_inverse_row : form A (row u P) = P u u.
Proof.
have PA : P *m A = 1%:M by rewrite -{1}inverse_sym; have [symA _] := psdA; rewrite -[A]symA -trmx_mul inverse trmx1.
rewrite form_dot -row_mul PA dotE big_ord1 (bigD1 u) //= big1 => [|j /negbTE neq].
  by rewrite !mxE eqxx mul1r addr0.
by rewrite !mxE eq_sym neq mul0r.
Qed.

Lemma dot_inverse_row (d : 'rV[R]_k) : dot (d *m A) (row u P) = d 0 u.
Proof.
have -> : dot (d *m A) (row u P) = (d *m A *m P^T) 0 u.
  by rewrite dotE big_ord1 mxE; apply: eq_bigr => j _; rewrite !mxE.
by rewrite inverse_sym -mulmxA inverse mulmx1.
Qed.

Theorem pinned_le (d : 'rV[R]_k) : d 0 u ^+ 2 / P u u <= form A d.
Proof.
rewrite ler_pdivr_mulr // -dot_inverse_row -form_inverse_row; exact: form_cauchy.
Qed.

Theorem pinned_reached a : form A ((a / P u u) *: row u P) = a ^+ 2 / P u u /\ ((a / P u u) *: row u P) 0 u = a.
Proof.
rewrite formZ form_inverse_row !mxE; split; last by rewrite divfK ?gt_eqF.
by field; rewrite gt_eqF.
Qed.
End PinnedEntry.

(* f over the rows x with support in S and one entry y at p outside S, around the refit t on S. With A = C_SS, c = C_pS,
   c_pp = C_pp and g_p = b_p - C_pS t (minus the gradient at p; on S it vanishes),
   f(x, y) = f(t) - g_p y + 1/2 ((x - t) A (x - t)^T + 2 y c (x - t)^T + c_pp y^2): objective_refitted below. *)
Section Swap.
Variables (R : realFieldType) (k : nat) (A P : 'M[R]_k) (c : 'rV[R]_k) (c_pp g_p f_t : R) (t : 'rV[R]_k).
Hypotheses (psdA : psd A) (inverse : A *m P = 1%:M).
Definition refitted (x : 'rV[R]_k) (y : R) :=
  f_t - g_p * y + (form A (x - t) + 2%:R * y * dot c (x - t) + c_pp * y ^+ 2) / 2%:R.

Variable M : 'rV[R]_k.
Hypothesis M_def : M = c *m P.
Definition s_p := c_pp - dot M c.

(* The optimal x for given y is t - y M; what remains is one square. *)
Lemma refittedE (x : 'rV[R]_k) (y : R) :
  refitted x y = f_t - g_p * y + (form A (x - t + y *: M) + s_p * y ^+ 2) / 2%:R.
Proof.
have [symA _] := psdA; rewrite /refitted /s_p; move: (x - t) => d; rewrite formD // formZ.
have MA : M *m A = c by rewrite M_def -mulmxA -{1}(inverse_sym psdA inverse) -[A]symA -trmx_mul inverse trmx1 mulmx1.
have -> : dot (d *m A) (y *: M) = y * dot c d by rewrite dotZr dot_mulmxC // MA.
have -> : form A M = dot M c by rewrite form_dot MA dotC.
by field.
Qed.

(* Inserting p alone: - g_p^2 / (2 s_p). *)
Theorem insertion (s_gt0 : 0 < s_p) (x : 'rV[R]_k) (y : R) : f_t - g_p ^+ 2 / (2%:R * s_p) <= refitted x y.
Proof.
rewrite refittedE -subr_ge0.
have -> : f_t - g_p * y + (form A (x - t + y *: M) + s_p * y ^+ 2) / 2%:R - (f_t - g_p ^+ 2 / (2%:R * s_p))
  = form A (x - t + y *: M) / 2%:R + s_p / 2%:R * (y - g_p / s_p) ^+ 2 by field; rewrite gt_eqF.
apply: addr_ge0; first by rewrite divr_ge0 ?form_ge0 ?ler0n.
by rewrite mulr_ge0 ?sqr_ge0 // divr_ge0 ?ler0n // ltW.
Qed.

Theorem insertion_reached (s_gt0 : 0 < s_p) (y := g_p / s_p) :
  refitted (t - y *: M) y = f_t - g_p ^+ 2 / (2%:R * s_p).
Proof.
rewrite refittedE; have -> : t - y *: M - t + y *: M = 0 by apply/rowP => j; rewrite !mxE; ring.
by rewrite form_dot mul0mx /dot mul0mx mxtrace0 /y; field; rewrite gt_eqF.
Qed.

Variable u : 'I_k.
Hypothesis pivot_gt0 : 0 < P u u.

(* Deleting u alone: + t_u^2 / (2 P_uu), by x = t - (t_u / P_uu) P_u. *)
Theorem deletion (x : 'rV[R]_k) : x 0 u = 0 -> f_t + t 0 u ^+ 2 / (2%:R * P u u) <= refitted x 0.
Proof.
move=> xu; rewrite refittedE mulr0 subr0 scale0r addr0 expr0n mulr0 addr0 ler_add2l.
have := pinned_le psdA inverse pivot_gt0 (x - t); rewrite !mxE xu add0r sqrrN => le.
by rewrite invfM mulrCA mulrC ler_pmul2r ?invr_gt0 ?ltr0n.
Qed.

Theorem deletion_reached (x := t - (t 0 u / P u u) *: row u P) :
  x 0 u = 0 /\ refitted x 0 = f_t + t 0 u ^+ 2 / (2%:R * P u u).
Proof.
have [val ent] := pinned_reached psdA inverse pivot_gt0 (t 0 u); split; first by rewrite !mxE divfK ?gt_eqF // subrr.
rewrite refittedE mulr0 subr0 scale0r addr0 expr0n mulr0 addr0 /x addrAC subrr add0r formN val.
by field; rewrite gt_eqF.
Qed.

(* The swap u -> p: gain = (g_p + M_u t_u / P_uu)^2 / (2 (s_p + M_u^2 / P_uu)) - t_u^2 / (2 P_uu). *)
Definition g_swap := g_p + M 0 u * t 0 u / P u u.
Definition s_swap := s_p + M 0 u ^+ 2 / P u u.
Definition swap_gain := g_swap ^+ 2 / (2%:R * s_swap) - t 0 u ^+ 2 / (2%:R * P u u).

Hypothesis s_gt0 : 0 < s_p.

Lemma s_swap_gt0 : 0 < s_swap.
Proof. by rewrite ltr_paddr // divr_ge0 ?sqr_ge0 // ltW. Qed.

Lemma swap_square y : f_t - g_p * y + ((y * M 0 u - t 0 u) ^+ 2 / P u u + s_p * y ^+ 2) / 2%:R
  = f_t - swap_gain + s_swap / 2%:R * (y - g_swap / s_swap) ^+ 2.
Proof.
transitivity (f_t + t 0 u ^+ 2 / (2%:R * P u u) + s_swap / 2%:R * y ^+ 2 - g_swap * y).
  by rewrite /s_swap /g_swap; field; rewrite gt_eqF.
by rewrite /swap_gain; have := s_swap_gt0 => s0; field; rewrite !gt_eqF.
Qed.

Theorem swap (x : 'rV[R]_k) (y : R) : x 0 u = 0 -> f_t - swap_gain <= refitted x y.
Proof.
move=> xu; apply: (@le_trans _ _ (f_t - g_p * y + ((y * M 0 u - t 0 u) ^+ 2 / P u u + s_p * y ^+ 2) / 2%:R)).
  by rewrite swap_square ler_addl mulr_ge0 ?sqr_ge0 // divr_ge0 ?ler0n // ltW ?s_swap_gt0.
rewrite refittedE ler_add2l ler_pmul2r ?invr_gt0 ?ltr0n // ler_add2r.
have := pinned_le psdA inverse pivot_gt0 (x - t + y *: M); rewrite !mxE xu add0r.
by rewrite (addrC (- _)).
Qed.

Theorem swap_reached : exists (x : 'rV[R]_k) (y : R), x 0 u = 0 /\ refitted x y = f_t - swap_gain.
Proof.
have := swap_square (g_swap / s_swap); rewrite subrr expr0n mulr0 addr0; move: (g_swap / s_swap) => y least.
have [val ent] := pinned_reached psdA inverse pivot_gt0 (y * M 0 u - t 0 u).
exists (t - y *: M + ((y * M 0 u - t 0 u) / P u u) *: row u P), y; split.
  by rewrite !mxE divfK ?gt_eqF // -opprB addNr.
rewrite refittedE -least; set v := _ *: row u P in val *.
have -> : t - y *: M + v - t + y *: M = v by apply/rowP => j; rewrite !mxE; ring.
by rewrite val.
Qed.
End Swap.

(* The same for the layer's f: x embed + y e_j has support in S and j, p lists S, t is the refit on S. *)
Theorem objective_refitted (R : realFieldType) n k (C : 'M[R]_n) (w : 'rV[R]_n) (p : 'I_k -> 'I_n)
  (t x : 'rV[R]_k) j y :
  symmetric C -> (t *m embed R p - w) *m C *m (embed R p)^T = 0 ->
  objective w C (x *m embed R p + y *: delta_mx 0 j) =
  refitted (C_SS C p) (\row_i C j (p i)) (C j j) (- gradient w C (t *m embed R p) 0 j) 
    (objective w C (t *m embed R p)) t x y.
Proof.
move=> symC normal; set E := embed R p; set e := delta_mx 0 j.
have -> : x *m E + y *: e = t *m E + ((x - t) *m E + y *: e) by rewrite mulmxBl addrA addrCA subrr addr0.
rewrite objectiveD // dotDr dotZr; have -> : dot (gradient w C (t *m E)) ((x - t) *m E) = 0.
  by rewrite /dot trmx_mul mulmxA /gradient normal mul0mx mxtrace0.
have dot_e (a : 'rV[R]_n) : dot a e = a 0 j.
  rewrite dotE big_ord1 (bigD1 j) //= big1 => [|l /negbTE neq]; last by rewrite !mxE neq andbF mulr0.
  by rewrite mxE !eqxx mulr1 addr0.
have row_e (A : 'M[R]_n) : e *m A = row j A by rewrite rowE.
rewrite dot_e formD // formZ dotZr; have -> : form C e = C j j by rewrite form_dot dot_e row_e mxE.
have -> : dot ((x - t) *m E *m C) e = dot (\row_i C j (p i)) (x - t).
  rewrite dot_mulmxC // row_e /dot trmx_mul mulmxA; congr (\tr (_ *m _)); apply/rowP => i.
  rewrite mxE (bigD1 (p i)) //= big1 => [|l /negbTE neq]; last by rewrite !mxE eq_sym neq mulr0.
  by rewrite !mxE eqxx mulr1 addr0.
have -> : form C ((x - t) *m E) = form (C_SS C p) (x - t) by rewrite /form /C_SS trmx_mul !mulmxA.
by rewrite add0r /refitted mulNr opprK -(mulrA 2%:R) [gradient _ _ _ _ _ * y]mulrC [C j j * _]mulrC.
Qed.
